"""The page in headless Chromium at three widths: nothing runs over, no figure is missing, the console stays empty.

Debian's package `chromium` is looked for; where it is not installed the test says so, and `make browser` installs it.
"""

import html
import re
import shutil
import subprocess

import pytest
from synthetic import run

from geomtraj.reporting import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOOK = """
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  const images = [...page.images].filter(i => i.closest("figure"));
  const heads = [...page.querySelectorAll("th[role=button]")];
  const found = {
    over: root.scrollWidth - frame.clientWidth,
    missing: images.filter(i => !i.complete || !i.naturalWidth).length,
    figures: images.length,
    sorted: "",
  };
  const table = page.querySelector("#layers tbody") && page.querySelector("#layers table");
  if (table) {
    const head = table.tHead.rows[1].cells[1], numbers = () => [...table.tBodies[0].rows]
      .filter(r => !r.classList.contains("first")).map(r => parseFloat(r.cells[1].textContent));
    head.click();
    const up = numbers().every((x, i, all) => !i || all[i - 1] <= x);
    head.click();
    const down = numbers().every((x, i, all) => !i || all[i - 1] >= x);
    found.sorted = up && down ? "yes" : "no";
  }
  const filter = page.querySelector("#layers input[type=search]");
  if (filter) {
    filter.value = "blocks.1.norm1"; filter.dispatchEvent(new Event("input"));
    const table = filter.nextElementSibling.querySelector("table") || filter.nextElementSibling;
    found.filtered = [...table.tBodies[0].rows].filter(r => !r.hidden).length;
  }
  page.querySelector("figure img").click();
  found.enlarged = page.querySelector("dialog").open;
  document.title = Object.entries(found).map(([k, v]) => `${k}=${v}`).join(" ");
});
</script>
"""


def looked_at(page, width, folder):
    """What the script found in the page at this width, and what Chromium wrote on the console."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium, or `make browser`)")
    wrapper = folder / f"at-{width}.html"
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page.read_text())}"></iframe>'
    wrapper.write_text(f"<!DOCTYPE html><title>not loaded</title>{frame}{LOOK}")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--virtual-time-budget=9000", "--window-size=1500,1000", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, flags=re.DOTALL).group(1)
    return dict(pair.split("=") for pair in title.split()), [s for s in done.stderr.splitlines() if "CONSOLE" in s]


@pytest.fixture(scope="module", params=[0, 39], ids=["6 blocks", "198 blocks"])
def page(request, tmp_path_factory):
    steps = [0, 10, 40]
    runs = {
        name: [run(name, seed, steps, request.param, terrain, statistics=("loss", "r_med")) for seed in (0, 1)]
        for name, terrain in (("adam", 1.0), ("sgdm", 2.0))
    }
    return report(runs, tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_looks_right(page, width, tmp_path):
    found, console = looked_at(page, width, tmp_path)
    assert not console
    assert int(found["over"]) <= 0 and found["missing"] == "0" and int(found["figures"]) >= 2
    assert found["sorted"] == "yes" and found["enlarged"] == "true"
    if "filtered" in found:
        assert int(found["filtered"]) >= 1
