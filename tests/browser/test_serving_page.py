"""The server's page in a real browser: type, click, read the lists, break the server and read the message."""

import html
import json
import os
import re
import subprocess
import threading
import time

import pytest
import uvicorn
from browser.test_pages import chromium  # noqa: F401 (a fixture)
from fastapi.responses import HTMLResponse
from unit.test_recommender import shop
from unit.test_restriction import with_memories
from unit.test_serving import served_student

from student.serving.app import PAGE, create_app
from student.serving.models import Models

pytestmark = pytest.mark.browser

DRIVE = """<script>
const wait = async (ready) => { while (!ready()) await new Promise((done) => setTimeout(done, 20)); };
const text = (id) => byId(id).innerText;
addEventListener("load", async () => {
  const result = {};
  await wait(() => document.querySelectorAll("#matches button").length === 20);
  byId("search").value = "i17"; byId("search").oninput();
  await wait(() => document.querySelectorAll("#matches button").length === 1);
  const match = document.querySelector("#matches button");
  match.focus(); result.focused = document.activeElement === match; match.click();
  await wait(() => document.querySelectorAll("#systems section").length === 2);
  result.systems = [...document.querySelectorAll("#systems section")].map((node) => node.innerText);
  result.rows = document.querySelectorAll("#systems ol > li").length;
  const tree = document.querySelector(".beams"), summary = tree.querySelector("summary");
  summary.focus(); result.tree_focused = document.activeElement === summary;
  for (let open = [tree]; open.length; open = [...tree.querySelectorAll("details:not([open])")]) {
    for (const node of open) node.querySelector("summary").click();
    await wait(() => open.every((node) => node.open && (node === tree || node.children.length === 2)));
  }
  result.tree = tree.innerText;
  result.colours = ["dark", "light"].map((scheme) => {
    document.documentElement.style.colorScheme = scheme;
    return getComputedStyle(document.querySelector("#systems section")).borderTopColor;
  });
  result.history = text("history"); result.good = text("message");
  result.window = innerWidth; result.document = document.documentElement.scrollWidth;
  fetch = () => Promise.reject(new TypeError("failed"));
  byId("search").oninput();
  await wait(() => text("message"));
  result.broken = text("message");
  const output = parent.document.createElement("pre");
  output.id = "result"; output.textContent = JSON.stringify(result); parent.document.body.append(output);
});
</script></body>"""


@pytest.fixture
def address(tmp_path):
    """A server of two students, whose /frame holds the driven page at 400 pixels."""
    students = [
        served_student(tmp_path, shop(), "tiny"),
        served_student(tmp_path, with_memories(shop()), "tiny+memory"),
    ]
    app = create_app(Models(students, None))
    driven = PAGE.read_text(encoding="utf-8").replace("</body>", DRIVE)
    frame = '<!doctype html><body><iframe style="width: 400px; height: 800px; border: 0" src="/driven"></iframe>'
    app.get("/driven")(lambda: HTMLResponse(driven))
    app.get("/frame")(lambda: HTMLResponse(frame))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_history_by_clicking_gives_two_lists(chromium, address, tmp_path):  # noqa: F811
    words = [chromium, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom", "--timeout=20000"]
    words += ["--virtual-time-budget=15000", f"--user-data-dir={tmp_path / 'profile'}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
    done = subprocess.run([*words, f"{address}/frame"], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout[-3000:] + done.stderr[-2000:]
    result = json.loads(html.unescape(match[1]))
    assert result["focused"] and result["rows"] == 20 and result["good"] == ""
    assert "i17" in result["history"]
    plain, mixed = result["systems"]
    assert plain.startswith("tiny\n") and "codewords" in plain and "Why" not in plain
    assert mixed.startswith("tiny+memory\n") and re.search(r"Why: model \d+%, counter \d+%, content \d+%", mixed)
    steps = r"codewords \d+ \(<?[\d.]+%\) → \d+ \(<?[\d.]+%\) → \d+ \(<?[\d.]+%\)"
    assert len(re.findall(steps, plain)) == 10  # every item of a list without memories came from a beam
    assert result["tree_focused"]
    ranks = [int(rank) for rank in re.findall(r"(\d+)\. i\d+", result["tree"])]
    assert sorted(ranks) == list(range(1, 11))  # every listed item is at a leaf of the opened tree
    dark, light = result["colours"]
    assert dark != light
    assert result["window"] == 400 and result["document"] <= 400
    assert result["broken"] == "The server does not answer. Is it running?"


def test_the_page_names_no_outside_resource():
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"""(https?:)?//[a-z]|<link|src=|@import|url\(""", re.sub(r"//  .*|//\s.*", "", text))
