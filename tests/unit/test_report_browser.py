"""The report in a real browser: no console errors, all figures drawn, no request leaves the page."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from fixtures.fake_run import write_fake_run

from scorebayes.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

# Appended to a copy of the page; it reports what the browser made of it.
PROBE = """<script>
addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)];
  const figures = all("figure svg"), images = all("img");
  const small = figures.map(f => f.getBoundingClientRect()).filter(box => box.width < 200 || box.height < 60);
  const broken = images.filter(image => !image.naturalWidth);
  const dangling = all("use").filter(use => !document.querySelector(use.getAttribute("href")));
  const requests = performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:"));
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = JSON.stringify({figures: figures.length, small: small.length, images: images.length,
    broken: broken.length, dangling: dangling.length, requests: requests.map(r => r.name), wide});
});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(write_fake_run(tmp_path_factory.mktemp("runs") / "run", n_patients=40))


@pytest.mark.skipif(
    BROWSER is None, reason="no Chromium found (apt-get install chromium): the page was not opened"
)
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_opens_without_errors_or_requests(page, tmp_path, width):
    probed = tmp_path / "probed.html"
    source = page.read_text(encoding="utf-8").replace('loading="lazy"', "")
    probed.write_text(source.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, "the page did not finish loading"
    assert "CONSOLE" not in done.stderr, done.stderr
    expected = '{"figures":15,"small":0,"images":42,"broken":0,"dangling":0,"requests":[],"wide":0}'
    assert found[1].replace("&quot;", '"') == expected
