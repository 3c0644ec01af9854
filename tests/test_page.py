"""The page in headless Chromium: a real service, a real executor, real pixels."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from segserve.layout import Home
from tests import modules
from tests.pages import browser, make_given_executor, polygon
from tests.proxies import Proxy
from tests.services import Service

pytestmark = pytest.mark.browser
expect.set_options(timeout=90_000)  # a busy machine takes its time; what is right is seen at once

SQUARE = (slice(10, 20), slice(10, 20))  # rows and columns of the bright block
SIZE = (40, 60)  # rows, columns
RESULT = '[aria-label="Images and objects"]'


def block() -> np.ndarray[Any, Any]:
    image = np.zeros(SIZE, np.uint8)
    image[SQUARE] = 200
    return image


def contour(image: np.ndarray[Any, Any]) -> list[list[int]]:
    """What executors write: `cv2.findContours`, through pixel centres."""
    (ring,), _ = cv2.findContours((image > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [[int(x), int(y)] for x, y in ring[:, 0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    first = [polygon(contour(block()), "Cell", 0.9), polygon([(30, 5), (30, 9), (34, 9), (34, 5)], "Debris", 0.3)]
    second = [polygon([(1, 1), (1, 9), (9, 9), (9, 1)], "Cell", 0.7)]
    make_given_executor(folder / "given", [first, second])
    grid = [
        polygon([(x + 4 * np.cos(a), y + 4 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 40)], "Cell", 0.5)
        for x in range(6, 606, 12)
        for y in range(6, 606, 12)
    ]
    make_given_executor(folder / "many", [grid])
    modules.make_module(folder / "module", parameters=modules.EVERY_PARAMETER)
    for name, image in {"a10.png": block(), "a9.png": block()[:, ::-1], "big.png": np.eye(612, dtype=np.uint8)}.items():
        (folder / name).write_bytes(bytes(cv2.imencode(".png", image)[1]))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    names = "\n".join(f'{name} = {{ref = "{folder}/{name}", prewarm = false}}' for name in ("given", "many", "module"))
    (folder / "config").mkdir()
    with Service(
        folder / "home", folder / "config", "--root-path", "/seg", server=f"[executors]\n{names}\n"
    ) as service:
        service.http.base_url = service.url.removesuffix("/seg")  # the tests stand where the proxy stands
        yield service


@pytest.fixture(scope="module")
def proxy(service: Service) -> Iterator[Proxy]:
    """All of this goes through the path of a proxy, which is what `--root-path` is for."""
    with Proxy(service.url, "/seg") as proxy:
        yield proxy


@pytest.fixture
def page(proxy: Proxy) -> Iterator[Page]:
    """A browser at the page; what it complains about is a failure."""
    complaints: list[str] = []
    with browser() as page:
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(proxy.url + "/")
        yield page
    assert not [text for text in complaints if "status of" not in text and "ERR_" not in text], complaints


def submit(page: Page, *files: Path, executor: str = "given", **fields: str) -> str:
    """Fill the form as a person does; the id of the job."""
    page.get_by_label("Executor", exact=True).select_option(executor)
    expect(page.locator("[data-name]").first).to_be_visible()
    page.locator("#images").set_input_files(list(files))
    for name, value in fields.items():
        page.locator(f'[data-name="{name}"] input[type="text"], [data-name="{name}"] input[type="number"]').fill(value)
    page.get_by_role("button", name="Segment").click()
    page.wait_for_url(re.compile("#/jobs/"))
    return page.url.rpartition("/")[2]


def shown(page: Page) -> np.ndarray[Any, Any]:
    """What is on the canvas, as RGB, one pixel per CSS pixel."""
    page.wait_for_function(f"() => document.querySelector('{RESULT}')?.viewer.image")
    page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    picture = page.evaluate("() => document.querySelector('canvas').toDataURL('image/png').split(',')[1]")
    import base64

    image = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[..., ::-1]


def viewer(page: Page, what: str) -> Any:
    return page.evaluate(f"() => {{ const {{ viewer }} = document.querySelector('{RESULT}'); return {what}; }}")


@pytest.fixture(scope="module")
def finished(service: Service, folder: Path) -> str:
    sent = [("images", (name, (folder / name).read_bytes())) for name in ("a10.png", "a9.png")]
    answer = service.http.post("/jobs", data={"executor": "given"}, files=sent)
    assert answer.status_code == 202, answer.text
    assert service.wait(answer.json()["job"])["state"] == "succeeded"
    return str(answer.json()["job"])


def test_from_dropped_images_to_exports(page: Page, service: Service, folder: Path) -> None:
    job = submit(page, folder / "a10.png", folder / "a9.png", diameter="12")
    expect(page.locator(".state.succeeded").first).to_be_visible()
    options = page.get_by_label("Images", exact=True).locator("option")
    expect(options).to_have_text(["a9.png · 2", "a10.png · 1"])  # in the order of people, not of texts
    expect(page.get_by_label("Objects shown")).to_have_text("2")
    done = service.http.get(f"/jobs/{job}").json()
    assert done["parameters"] == {"diameter": "12"}  # what was not touched is not sent
    expect(page.get_by_role("link", name="MLflow run")).to_have_attribute("href", f"/seg/{done['mlflow']}")
    assert "diameter 12" in page.locator(".log").text_content()
    with page.expect_download() as download:
        page.get_by_role("link", name="COCO").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(json.loads(archive.read("coco/coco.json"))["annotations"]) == 3
    row = page.locator("#job-list a").first
    expect(row).to_have_attribute("aria-current", "page")
    expect(row).to_contain_text("2 images")


def test_polygons_lie_on_the_pixels_that_they_mean(page: Page, proxy: Proxy, finished: str) -> None:
    page.goto(f"{proxy.url}/#/jobs/{finished}")
    shown(page)
    scale, left, top = 8, 40, 30
    viewer(page, f"Object.assign(viewer, {{scale: {scale}, x: {left}, y: {top}}}) && viewer.paint()")
    with_outlines = shown(page).astype(int)
    viewer(page, "viewer.toggle()")
    bare = shown(page).astype(int)
    # The image: its bright block covers whole pixels.
    bright = np.argwhere(bare[..., 0] > 128)
    assert bright.min(axis=0).tolist() == [top + 10 * scale, left + 10 * scale]
    assert bright.max(axis=0).tolist() == [top + 20 * scale - 1, left + 20 * scale - 1]
    # The outline of OpenCV goes through the centres of its outermost pixels: half a pixel inside of the block.
    drawn = np.argwhere(np.abs(with_outlines - bare).sum(axis=2) > 60)
    block_only = drawn[(drawn[:, 1] < left + 25 * scale)]
    centre = (block_only.min(axis=0) + block_only.max(axis=0) + 1) / 2
    extent = block_only.max(axis=0) - block_only.min(axis=0) + 1
    assert np.abs(centre - [top + 15 * scale, left + 15 * scale]).max() <= 0.5
    assert np.abs(extent - (9 * scale + 1.6)).max() <= 1.5  # from centre to centre, and the line's width
    edge = block_only.min(axis=0) + 0.8
    assert np.abs(edge - [top + 10.5 * scale, left + 10.5 * scale]).max() <= 1


def test_filters_and_keys(page: Page, proxy: Proxy, finished: str) -> None:
    page.goto(f"{proxy.url}/#/jobs/{finished}")
    count = page.get_by_label("Objects shown")
    expect(count).to_have_text("2")
    page.get_by_label("Score at least").fill("0.5")
    expect(count).to_have_text("1")
    expect(page.get_by_text("of 2 objects")).to_be_visible()
    page.get_by_label("Score at least").fill("0")
    page.get_by_role("checkbox", name="Cell").uncheck()
    expect(count).to_have_text("1")
    assert viewer(page, "viewer.visible.map((one) => one.label)") == ["Debris"]
    page.get_by_role("checkbox", name="Cell").check()
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Images", exact=True)).to_have_value("1")
    expect(count).to_have_text("1")
    page.keyboard.press("ArrowLeft")
    expect(count).to_have_text("2")
    before = viewer(page, "viewer.scale")
    page.keyboard.press("+")
    assert viewer(page, "viewer.scale") == pytest.approx(before * 1.5)
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert viewer(page, "viewer.scale") < before
    page.keyboard.press("0")
    assert viewer(page, "viewer.scale") == pytest.approx(before)
    page.mouse.move(0, 0)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    x, y, scale = viewer(page, "[viewer.x, viewer.y, viewer.scale]")
    page.mouse.move(box["x"] + x + 15 * scale, box["y"] + y + 15 * scale)
    expect(page.locator(".tip")).to_have_text("Cell 1 · score 0.90")


def test_thousands_of_polygons_are_drawn_at_once(page: Page, service: Service, folder: Path) -> None:
    submit(page, folder / "big.png", executor="many")
    expect(page.get_by_label("Objects shown")).to_have_text("2,500")
    shown(page)
    draw = "const began = performance.now(); viewer.draw(); viewer.canvas.getContext('2d').getImageData(0, 0, 1, 1);"
    times = []
    for step in range(12):
        viewer(page, f"viewer.zoom({1.2 if step % 2 else 0.9})")
        # Reading a pixel back waits until all is painted; without it the browser only takes notes.
        times.append(viewer(page, f"(() => {{ {draw} return performance.now() - began; }})()"))
    # While somebody moves, a picture of the outlines goes along; then they are drawn anew, where they belong.
    rested = "viewer.layer.view[0] === viewer.scale && viewer.layer.view[1] === viewer.x"
    page.wait_for_function(f"() => {{ const {{ viewer }} = document.querySelector('{RESULT}'); return {rested}; }}")
    print(f"\n2,500 polygons of 40 points: {np.median(times):.1f} ms a picture (software rendering)")
    assert np.median(times) < 2000  # a hang, not a machine that is busy


def test_every_type_of_parameter_has_its_widget(page: Page) -> None:
    page.get_by_label("Executor", exact=True).select_option("module")
    expect(page.locator("[data-type]")).to_have_count(14)  # and where it runs
    expected = {
        **dict.fromkeys(("string", "string_list", "int_list", "float_list", "bool_list"), 'input[type="text"]'),
        **dict.fromkeys(("int", "float"), 'input[type="number"]'),
        **dict.fromkeys(("int_range", "float_range"), 'input[type="range"]'),
        **dict.fromkeys(("string_enum", "int_enum", "float_enum"), "select"),
        "bool": 'input[type="checkbox"]',
    }
    for kind, control in expected.items():
        field = page.locator(f'[data-type="{kind}"][data-name^="some_"]')
        expect(field.locator(control)).to_have_count(1)
        tooltip = field.locator("input, select").first.get_attribute("title")
        assert tooltip, kind
        assert tooltip in (field.locator(".hint").text_content() or "")
        for element in field.locator("input, select").all():
            assert element.get_attribute("aria-describedby")
    slider = page.locator('[data-type="float_range"]')
    slider.locator('input[type="range"]').fill("4.2")
    expect(slider.locator('input[type="number"]')).to_have_value("4.2")
    page.locator("#images").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": b"x"}])
    for kind, wrong in {
        "int": "1.5",
        "float_range": "11",
        "int_list": "1, two",
        "bool_list": "maybe",
        "float_list": "[1",
    }.items():
        box = page.locator(f'[data-type="{kind}"] input').last
        right = box.input_value()
        box.fill(wrong)
        page.get_by_role("button", name="Segment").click()
        expect(page.locator(f'[data-type="{kind}"] .error')).to_be_visible()
        expect(box).to_be_focused()
        box.fill(right)
    assert "#/jobs" not in page.url


def test_a_failure_says_what_the_server_says(page: Page, service: Service, folder: Path) -> None:
    page.get_by_label("Executor", exact=True).select_option(" other")
    page.get_by_label("Repository", exact=True).fill(str(folder / "nothing"))
    page.keyboard.press("Enter")
    refused = page.get_by_role("region", name="This executor cannot be used")
    expect(refused).to_be_visible()
    said = service.http.get("/executor", params={"ref": str(folder / "nothing")}).json()
    expect(refused).to_contain_text(said["message"])
    job = submit(page, folder / "a9.png", name="crash")
    failed = page.get_by_role("region", name="The job has failed")
    expect(failed).to_contain_text("the model file is empty")
    facts = service.http.get(f"/jobs/{job}").json()
    expect(failed).to_contain_text(facts["error"])
    expect(failed.locator("pre")).to_contain_text(facts["quote"].splitlines()[-1].strip())


def test_a_lost_connection_is_shown_and_recovers(page: Page, proxy: Proxy, folder: Path) -> None:
    submit(page, folder / "a9.png", name="slow")
    expect(page.locator(".log")).to_contain_text("second 1")
    proxy.lose()
    expect(page.locator("#connection")).to_contain_text("connection to the server is lost")
    proxy.down = False
    expect(page.locator("#connection")).to_be_hidden()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".state.cancelled").first).to_be_visible()
    lines = [line for line in (page.locator(".log").text_content() or "").splitlines() if line.startswith("second ")]
    assert lines == list(dict.fromkeys(lines))  # nothing twice


def test_everything_by_keyboard(page: Page, folder: Path) -> None:
    expect(page.get_by_label("Executor", exact=True).locator("option")).not_to_have_count(1)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))
        focus = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert focus != "none" or reached[-1] == "images", reached[-1]  # the drop zone around it shows the focus
        if "Segment" in reached[-1]:
            break
        if reached[-1] == "executor":
            page.keyboard.type("given")
            expect(page.locator("[data-name]").first).to_be_visible()
    assert reached[-1] == "Segment"
    assert "images" in reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_400_pixels_wide_in_light_and_dark(proxy: Proxy, finished: str, scheme: str) -> None:
    with browser(400, 800, color_scheme=scheme) as page:
        for place in ("", f"#/jobs/{finished}"):
            page.goto(f"{proxy.url}/{place}")
            if place:
                shown(page)
                page.reload()
                shown(page)
            expect(page.locator("h1")).to_be_visible()
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 400, place
        ground, ink = (
            page.evaluate(f"() => getComputedStyle(document.documentElement).{name}")
            for name in ("backgroundColor", "color")
        )
        light, dark = (np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]) for colour in (ground, ink))
        assert (light > dark) == (scheme == "light")


def test_nothing_comes_from_elsewhere_and_texts_stay_texts(service: Service, proxy: Proxy, folder: Path) -> None:
    answer = service.http.get("/", headers={"Accept": "text/html"})
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
    name = "<img src=x onerror=alert(1)>"
    make_given_executor(folder / "hostile", [[polygon([(1, 1), (1, 9), (9, 9)], name, 0.5)]])
    sent = [("images", (f"{name}.png", (folder / "a9.png").read_bytes()))]
    job = service.http.post("/jobs", data={"executor": str(folder / "hostile")}, files=sent).json()["job"]
    assert service.wait(job)["state"] == "succeeded"
    asked: list[str] = []
    with browser() as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append("dialog"))
        page.goto(f"{proxy.url}/#/jobs/{job}")
        shown(page)
        expect(page.locator(".labels")).to_contain_text(name)
        assert page.locator("img[src=x]").count() == 0
    assert asked
    assert all(url.startswith((proxy.url, "blob:")) for url in asked), asked


def test_signing_in_with_a_token(tmp_path: Path, folder: Path) -> None:
    from segserve.tokens import Scope, Tokens

    home = tmp_path / "guarded"
    home.mkdir()
    server = f'[executors]\ngiven = "{folder}/given"\n[repositories]\nallow = ["https://example.org/"]\n'
    _, text = Tokens(Home(home).tokens).add("anna", user="anna", scopes=[Scope.READ, Scope.SUBMIT])
    with Service(home, tmp_path / "config", server=server) as service, browser() as page:
        page.goto(service.url + "/")
        page.get_by_label("Token").fill("sgs_00000000_" + "0" * 48)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("region", name="This did not work")).to_contain_text("not valid")
        page.get_by_label("Token").fill(text)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("anna", exact=True)).to_be_visible()
        expect(page.get_by_label("Executor", exact=True)).to_be_visible()
        page.get_by_label("Executor", exact=True).select_option(" other")
        page.get_by_label("Repository", exact=True).fill("https://example.com/somebody/elses")
        page.keyboard.press("Enter")
        expect(page.get_by_role("region", name="This executor cannot be used")).to_contain_text(
            "example.com/somebody/elses"
        )
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()
