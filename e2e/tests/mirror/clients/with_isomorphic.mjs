// Clones URL to DIR with isomorphic-git (protocol version 1 of its own making), fetches once more, prints the commit
// that is checked out and its files.
import fs from "node:fs";
import { createRequire } from "node:module";

const [packages, url, dir] = process.argv.slice(2);
const require = createRequire(packages + "/");
const git = require("isomorphic-git");
const http = require("isomorphic-git/http/node");
await git.clone({ fs, http, dir, url, singleBranch: false });
await git.fetch({ fs, http, dir, url });
console.log(await git.resolveRef({ fs, dir, ref: "HEAD" }));
const walk = async (path, [entry]) =>
  entry && (await entry.type()) === "blob" ? `${path} ${await entry.oid()}` : undefined;
for (const line of (await git.walk({ fs, dir, trees: [git.STAGE()], map: walk, reduce: async (parent, children) => children.flat().concat(parent ?? []) })).sort())
  console.log(line);
