//! What an agent inside reads to know where it is: `git sandbox help agent`, and the text that
//! presets put where their agent looks for instructions. The same input gives the same text.

use sandbox_core::launch::Network;

/// The variable inside that says which network the sandbox has: `none`, `host` or `allow`.
pub const NET_VARIABLE: &str = "GIT_SANDBOX_NET";

/// Returns the text for the sandbox `name`. `rules` are those that its policy allows, as far as the
/// caller can see them: inside they are not visible, and the text then tells how to find out.
pub fn text(name: &str, network: Network, rules: &[String]) -> String {
    with_network(name, &network_words(name, network, rules))
}

/// As [`text`], where the network is not known.
pub fn text_of_unknown_network(name: &str) -> String {
    with_network(
        name,
        &format!("What the network allows is not known here: `echo ${NET_VARIABLE}` inside a sandbox tells.\n"),
    )
}

fn with_network(name: &str, network: &str) -> String {
    let name = crate::text::escape(name);
    format!(
        "\
You are in the sandbox '{name}' of git-sandbox: an isolated copy of a user's git working tree, at the same
path. The user's own tree is out of reach: nothing that is done here changes it.

What stays
- The working tree and the home directory, also over a stop and start of the sandbox.
- /tmp is emptied at each start. Processes end when the sandbox is stopped.

How work comes back
- Commit. Commits on any branch go to the user's repository by themselves: the branch that is checked out
  becomes refs/sandbox/{name} there. `git push host HEAD` does it at once and says whether it worked.
- What is not committed is kept here, but only commits travel: commit before you end.
- `git fetch host` brings commits that the user has made since this copy was taken.
- `origin` and other remotes may be unreachable, and no credentials for them are here. Do not push there:
  the user does that.

Network
{network}
What does not work
- sudo, apt and other things that need root do not work, unless the sandbox was made with --root. Install
  into the home directory or the working tree.
- Other files of the user (their home, keys, other projects) are not here. Ask for what is missing.
- `git sandbox` inside knows push, sync (the same as `git fetch host`) and help.
"
    )
}

fn network_words(name: &str, network: Network, rules: &[String]) -> String {
    match network {
        Network::None => "\
- There is none, only a loopback device. Downloads, package installs and web requests fail; do not try
  to work around it. If the task needs a host, tell the user which one and why: after
  `git sandbox allow NAME HOST`, a stop and a start, it can be reached.
"
        .replace("NAME", &crate::text::escape(name)),
        Network::Host => "- It is the network of the user's machine, without a filter.\n".to_owned(),
        Network::Allow => {
            let allowed = if rules.is_empty() {
                "  Which hosts are allowed is written outside and can change: try the one that you need.\n".to_owned()
            } else {
                // Where a name leads on the user's side is nothing to know inside.
                let mut hosts: Vec<String> = Vec::new();
                for rule in rules {
                    let host = crate::text::escape(rule.split('=').next().unwrap_or_default());
                    if !hosts.contains(&host) {
                        hosts.push(host);
                    }
                }
                format!("  Allowed when this was written: {}.\n", hosts.join(", "))
            };
            format!(
                "\
- Only listed hosts, through the HTTP proxy of the variables https_proxy and http_proxy; no DNS, no other way.
{allowed}\
- A refused host looks like this: HTTP status 403 with a header `X-Git-Sandbox: blocked` (for HTTPS:
  \"CONNECT tunnel failed, response 403\"). Do not try to work around it. Tell the user which host is needed
  and why: `git sandbox allow {} HOST` on their side works at once, then try again.
",
                crate::text::escape(name)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_short_and_the_same_each_time() {
        let rules = ["api.example.com".to_owned(), "*.example.org:8443".to_owned()];
        for network in [Network::None, Network::Host, Network::Allow] {
            let seen = text("fix-login", network, &rules);
            assert!(seen.lines().count() < 40, "{seen}");
            assert!(seen.lines().all(|line| line.chars().count() <= 120), "{seen}");
            assert_eq!(seen, text("fix-login", network, &rules));
        }
    }

    #[test]
    fn where_a_name_leads_is_not_told() {
        let rules =
            ["intra.example=10.1.2.3".to_owned(), "intra.example=10.0.0.0/8".to_owned(), "b.example".to_owned()];
        let seen = text("a", Network::Allow, &rules);
        assert!(seen.contains("  Allowed when this was written: intra.example, b.example.\n"), "{seen}");
        assert!(!seen.contains("10."), "{seen}");
    }
}
