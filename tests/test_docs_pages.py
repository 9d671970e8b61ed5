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

import eenet

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


def dom(address: str, folder: Path, seconds: int) -> str:
    """A page after so many seconds of its own time."""
    files = ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *files, "--window-size=1500,1000"]
    command += [f"--timeout={seconds}000", f"--virtual-time-budget={seconds}000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=True).stdout


def look_at(pages: list[str], folder: Path) -> dict[str, list[str]]:
    """What is cut off on each page at each width."""
    script = LOOK.replace("PAGES)", f"{json.dumps(pages)})").replace("WIDTHS)", f"{list(WIDTHS)})")
    harness = folder / "look.html"
    harness.write_text(script)
    page = dom(harness.as_uri(), folder, 600)
    found = re.search(r'<pre id="found">(.*?)</pre>', page, re.DOTALL)
    assert found is not None, page
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, site = Path(__file__).parents[1], tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    told = {"NO_MKDOCS_2_WARNING": "1", "EENET_REPOSITORY": "https://example.org/eenet"}
    subprocess.run(build, cwd=root, check=True, env={**os.environ, **told})
    return site


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_search_works_from_the_disk_and_pages_say_their_version(site: Path, tmp_path: Path) -> None:
    page = dom(f"{(site / 'index.html').as_uri()}?q=conformal", tmp_path, 20)
    found = re.findall(r'href="[^"]*"[^>]*class="md-search-result__link"', page)
    assert any("hit_a_budget" in link or "trust" in link or "calibration" in link for link in found), found
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?://(?!example\.org)', page)
    assert f"eenet {eenet.__version__}" in page
    assert 'href="https://example.org/eenet"' in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_no_page_is_cut_off(site: Path) -> None:
    pages = sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if page.name != "404.html")
    assert len(pages) > 40
    assert {where: cut for where, cut in look_at(pages, site).items() if cut} == {}
