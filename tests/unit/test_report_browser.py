"""The report in a real browser: no console errors, all figures drawn, no request leaves the page."""

from __future__ import annotations

import os
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


# A window is at least 500 pixels wide, a frame is as narrow as a phone. It says what it found in its own title, which the
# page around it cannot read: so it sends a message.
PHONE = """<!doctype html><title>waiting</title><iframe src="probed.html" width="390" height="800"></iframe><script>
addEventListener("message", event => { document.title = event.data; });
</script>"""


@pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"),  # .ci/run installs it
    reason="NOT TESTED in a browser: no Chromium found (apt-get install chromium); the report was not opened",
)
@pytest.mark.parametrize("width", [1280, 500, 390])
def test_the_page_opens_without_errors_or_requests(page, tmp_path, width):
    probed, opened = tmp_path / "probed.html", tmp_path / "probed.html"
    source, probe = page.read_text(encoding="utf-8").replace('loading="lazy"', ""), PROBE
    if width < 500:
        opened = tmp_path / "phone.html"
        opened.write_text(PHONE, encoding="utf-8")
        probe = PROBE.replace(
            "document.title = JSON.stringify(", "parent.postMessage(JSON.stringify("
        ).replace("wide});", 'wide}), "*");')
    probed.write_text(source.replace("</body>", probe + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900",
         "--virtual-time-budget=5000", "--dump-dom", opened.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, "the page did not finish loading"
    assert "CONSOLE" not in done.stderr, done.stderr
    expected = '{"figures":20,"small":0,"images":42,"broken":0,"dangling":0,"requests":[],"wide":0}'
    assert found[1].replace("&quot;", '"') == expected
