"""Print the bash blocks of a page as one script, but those marked `norun`: `python tools/snippets.py docs/PAGE.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```bash([^\n]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    print("set -euo pipefail")
    print("\n".join(body for mark, body in BLOCK.findall(text) if "norun" not in mark))


if __name__ == "__main__":
    main()
