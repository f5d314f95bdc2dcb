# Clones URL to DIR with dulwich, fetches once more, prints the commit that is checked out and its files.
import io
import sys
from dulwich import porcelain

url, dir = sys.argv[1:]
repo = porcelain.clone(url, dir, errstream=io.BytesIO())
porcelain.fetch(repo, "origin", errstream=io.BytesIO(), quiet=True)
print(repo.head().decode())
for path, entry in sorted(repo.open_index().items()):
    print(path.decode(), entry.sha.decode())
repo.close()
