"""No page of the documentation cuts code, tables or pictures off, on a phone or on a desk: looked at in Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (400, 1400)
LOOK = """
<body><pre id="found"></pre><script>
const scrolls = node => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
const cut = (document, width) => {
  const found = [], page = document.documentElement.scrollWidth;
  if (page > width + 1) found.push(`page: ${page} px wide`);
  for (const node of document.querySelectorAll(":is(pre, table, img, math, code):not(header *, nav *)")) {
    let above = node;
    while (above && !scrolls(above)) above = above.parentElement;
    const right = node.getBoundingClientRect().right;
    if (!above && right > width + 1) found.push(`${node.tagName}: ${node.textContent.trim().slice(0, 60)}`);
  }
  return found;
};
const open = (page, width) => new Promise(done => {
  const frame = document.createElement("iframe");
  Object.assign(frame.style, {width: `${width}px`, height: "900px", border: 0});
  frame.src = page;
  frame.onload = () => setTimeout(() => { done(cut(frame.contentDocument, width)); frame.remove(); }, 50);
  document.body.append(frame);
});
(async () => {
  const found = {};
  for (const page of PAGES) for (const width of WIDTHS) found[`${page} at ${width} px`] = await open(page, width);
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script></body>
"""


def look_at(pages: list[str], folder: Path) -> dict[str, list[str]]:
    """What is cut off on each page at each width."""
    script = LOOK.replace("PAGES)", f"{json.dumps(pages)})").replace("WIDTHS)", f"{list(WIDTHS)})")
    harness = folder / "look.html"
    harness.write_text(script)
    files = ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *files, "--window-size=1500,1000"]
    command += ["--timeout=600000", "--virtual-time-budget=600000", "--dump-dom", harness.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom
    return json.loads(unescape(found[1]))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_what_is_cut_is_found_and_what_scrolls_is_not(tmp_path: Path) -> None:
    wide = "<article><pre style='width: 900px; {}'>wide</pre></article>"
    (tmp_path / "cut.html").write_text(wide.format(""))
    (tmp_path / "fits.html").write_text(f"<div style='overflow-x: auto'>{wide.format('')}</div>")
    found = look_at(["cut.html", "fits.html"], tmp_path)
    assert any(line.startswith("PRE: wide") for line in found["cut.html at 400 px"])
    assert found["cut.html at 1400 px"] == found["fits.html at 400 px"] == found["fits.html at 1400 px"] == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_no_page_is_cut_off(tmp_path: Path) -> None:
    root, site = Path(__file__).parents[1], tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(build, cwd=root, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    pages = sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if page.name != "404.html")
    assert len(pages) > 40
    assert {where: cut for where, cut in look_at(pages, site).items() if cut} == {}
