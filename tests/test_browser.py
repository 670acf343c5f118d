"""The page that classifies a drawing: its JavaScript against JAX, on every test image."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax.folding import fold
from bop_optax.saving import load
from experiments.presets import PRESETS
from training.data.augment import scale
from training.data.memory import digits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/_static/digits"
IMAGES = digits().test_images
CHROMIUM = shutil.which("chromium")

NODE = """
import { readFileSync } from "fs";
import { binaryNet } from "./binarynet.mjs";
const [file, images] = process.argv.slice(2).map((path) => readFileSync(path));
const network = binaryNet(new Uint8Array(file).buffer);
console.log(JSON.stringify(JSON.parse(images).map(network)));
"""
# Draws a seven by the mouse, and classifies the test images in the page.
PLAYWRIGHT = """
const { chromium } = require("playwright-core");
const { readFileSync } = require("fs");
const [url, images, screenshot] = process.argv.slice(2);
(async () => {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM });
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 } });
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("answer").textContent.includes("Draw"));
  const box = await page.locator("#drawing").boundingBox();
  const strokes = [[[60, 50], [190, 50], [110, 210]]];
  for (const [[x, y], ...points] of strokes) {
    await page.mouse.move(box.x + x, box.y + y);
    await page.mouse.down();
    for (const [x, y] of points) await page.mouse.move(box.x + x, box.y + y, { steps: 10 });
    await page.mouse.up();
  }
  await page.screenshot({ path: screenshot });
  const answer = await page.textContent("#answer");
  const results = await page.evaluate(async (images) => {
    const { binaryNet } = await import(new URL("_static/digits/binarynet.js", location.href));
    const file = await fetch(new URL("_static/digits/digits.safetensors", location.href));
    return images.map(binaryNet(await file.arrayBuffer()));
  }, JSON.parse(readFileSync(images)));
  await page.click("#clear");
  const cleared = await page.textContent("#answer");
  console.log(JSON.stringify({ answer, cleared, errors, results }));
  await browser.close();
})();
"""


class Recorded(nnx.Module):
    """A layer that keeps its output."""

    def __init__(self, layer):
        self.layer = layer
        self.sums = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        y = self.layer(x)
        self.sums = nnx.Variable(y)
        return y


@pytest.fixture(scope="module")
def expected():
    """The logits and the layers' sums, computed by JAX of the file that the page reads."""
    model = PRESETS["digits-bop"][1].model.build((8, 8, 1), 10, rngs=nnx.Rngs(0))
    model = load(
        PAGE / "digits.safetensors", fold(model, jax.ShapeDtypeStruct((1, 8, 8, 1), float))
    )
    for layers in (model.convs, model.denses):
        for i, layer in enumerate(layers):
            layers[i] = Recorded(layer)
    logits = model(scale(jnp.asarray(IMAGES)))
    sums = [np.asarray(layer.sums[...]) for layer in (*model.convs, *model.denses)]
    return np.asarray(logits), [s.reshape(len(IMAGES), -1) for s in sums]


def assert_equal(results, expected):
    logits, sums = expected
    assert len(results) == len(IMAGES) == 360
    for layer, values in enumerate(sums):
        found = np.array([result["sums"][layer] for result in results])
        if layer:
            np.testing.assert_array_equal(found, values)
        else:  # sums of real numbers
            np.testing.assert_allclose(found, values, atol=2e-6)
    found = np.array([result["logits"] for result in results])
    np.testing.assert_allclose(found, logits, atol=2e-6)
    np.testing.assert_array_equal(found.argmax(-1), logits.argmax(-1))


def test_the_file_has_the_accuracy_of_the_docs(expected):
    accuracy = np.mean(expected[0].argmax(-1) == digits().test_labels)
    assert f"{accuracy:.1%}".replace("%", " %") in (ROOT / "docs/in_the_browser.md").read_text()


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "images.json"
    path.write_text(json.dumps(IMAGES.reshape(360, 64).tolist()))
    return path


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_sums_and_classes_in_javascript_are_those_of_jax(expected, images, tmp_path):
    shutil.copy(PAGE / "binarynet.js", tmp_path / "binarynet.mjs")
    (tmp_path / "classify.mjs").write_text(NODE)
    command = ["node", tmp_path / "classify.mjs", PAGE / "digits.safetensors", images]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert_equal(json.loads(output), expected)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM or not shutil.which("npm"), reason="needs Chromium and npm")
def test_the_page_classifies_in_chromium(expected, images, tmp_path):
    site = tmp_path / "site"
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-b", "html", ROOT / "docs", site]
    subprocess.run(sphinx, check=True)
    subprocess.run(["npm", "install", "--silent", "playwright-core"], cwd=tmp_path, check=True)
    script = tmp_path / "draw.js"
    script.write_text(PLAYWRIGHT)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}/in_the_browser.html"
        command = ["node", script, url, images, tmp_path / "page.png"]
        environment = {**os.environ, "CHROMIUM": CHROMIUM}
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout
        server.shutdown()
    found = json.loads(output)
    assert found["answer"] == "This is 7."
    assert found["cleared"] == "Draw a digit."
    assert not found["errors"]
    assert_equal(found["results"], expected)
