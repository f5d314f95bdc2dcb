# Clones URL to DIR with libgit2, fetches once more, prints the commit that is checked out and its files.
import sys
import pygit2

url, dir = sys.argv[1:]
repo = pygit2.clone_repository(url, dir)
repo.remotes["origin"].fetch()
print(repo.head.target)
for entry in sorted(repo.index, key=lambda entry: entry.path):
    print(entry.path, entry.id)
