"""Make README's picture: the first control table of a report, as Chromium shows it. `python tools/picture.py RUN`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bs4 import BeautifulSoup
from PIL import Image

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo-report.png"
WIDTH, HEIGHT = 1180, 800


def main() -> None:
    page = BeautifulSoup((Path(sys.argv[1]) / "report.html").read_text(encoding="utf-8"), "html.parser")
    heading = page.find(id="task-1")
    if heading is None or page.body is None:
        raise SystemExit("this report has no control table")
    section = heading.find_parent("section") or heading.parent
    page.body["style"] = "padding: 0 24px"
    page.body.clear()
    page.body.append(section)
    with tempfile.TemporaryDirectory() as scratch:
        html, png = Path(scratch) / "page.html", Path(scratch) / "page.png"
        html.write_text(str(page), encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        window = f"--window-size={WIDTH},{HEIGHT}"
        subprocess.run([*command, window, f"--screenshot={png}", html.as_uri()], check=True, capture_output=True)
        Image.open(png).convert("RGB").quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
