"""The page as people use it: real drops, environments that are built, failures, a server that goes away, keys alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import tifffile
from playwright.sync_api import Page, expect

from tests.pages import browser, make_given_executor, polygon
from tests.repositories import make_repository
from tests.services import Service

pytestmark = pytest.mark.browser
expect.set_options(timeout=90_000)  # a busy machine takes its time; what is right is seen at once

BROKEN = {
    "MLproject": "name: broken\npython_env: python_env.yaml\nentry_points: {main: {command: ls}}\n",
    "python_env.yaml": 'python: "3.11"\ndependencies: ["./nothing-0.1-py3-none-any.whl"]\n',
}
# A package that is built when a file is there.
BACKEND = """\
import os, time, zipfile
INFO = "slow-1.dist-info/"
FILES = {INFO + "METADATA": "Metadata-Version: 2.1\\nName: slow\\nVersion: 1\\n", INFO + "RECORD": "",
         INFO + "WHEEL": "Wheel-Version: 1.0\\nGenerator: b\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}
def build_wheel(folder, config_settings=None, metadata_directory=None):
    while not os.path.exists("GO"):
        time.sleep(0.2)
    with zipfile.ZipFile(os.path.join(folder, "slow-1-py3-none-any.whl"), "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    return "slow-1-py3-none-any.whl"
"""


def slow_executor(go: Path) -> dict[str, str]:
    return {
        "MLproject": "name: slow\npython_env: python_env.yaml\nentry_points: {main: {command: ls}}\n",
        "python_env.yaml": 'python: "3.11"\ndependencies: ["./slow"]\n',
        "slow/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
        "slow/b.py": BACKEND.replace("GO", str(go)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("use")
    square = [
        polygon([(1, 1), (1, 9), (9, 9), (9, 1)], "Cell", 0.7),
        polygon([(20, 5), (20, 9), (24, 9)], "Debris", 0.3),
    ]
    make_given_executor(folder / "given", [square])
    make_repository(folder / "broken", BROKEN)
    make_repository(folder / "slow", slow_executor(folder / "go"))
    make_given_executor(folder / "wait", [square])
    plate = folder / "drop" / "plate 1"
    (plate / "deep").mkdir(parents=True)
    picture = bytes(cv2.imencode(".png", np.eye(40, dtype=np.uint8) * 200)[1])
    for name in (*(f"f{number}.png" for number in range(120)), "deep/z.tif", ".hidden.png", "Thumbs.db", "notes.txt"):
        (plate / name).write_bytes(picture)
    for name in ("a.png", "table.csv"):
        (folder / "drop" / name).write_bytes(picture)
    tifffile.imwrite(folder / "two.ome.tif", np.zeros((2, 40, 60), np.uint16), metadata={"axes": "CYX"})
    return folder


def configuration(folder: Path) -> str:
    names = "\n".join(f'{name} = "{folder}/{name}"' for name in ("broken", "slow", "wait"))
    return f'[executors]\ngiven = {{ref = "{folder}/given", prewarm = false}}\n{names}\n'


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with Service(folder / "home", folder / "config", server=configuration(folder)) as service:
        yield service


@pytest.fixture
def page(service: Service) -> Iterator[Page]:
    """A browser at the page; what it complains about is a failure."""
    complaints: list[str] = []
    with browser() as page:
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(service.url + "/")
        yield page
    assert not [text for text in complaints if "status of" not in text and "ERR_" not in text], complaints


def choose(page: Page, executor: str) -> None:
    page.get_by_label("Executor", exact=True).select_option(executor)


def drop(page: Page, target: str, *paths: Path) -> None:
    """What a person does with a file manager: Chromium gets the names of files and folders."""
    box = page.locator(target).bounding_box()
    assert box is not None
    client = page.context.new_cdp_session(page)
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        client.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
        if kind == "dragOver":
            expect(page.locator(".drop.over")).to_be_visible()
    expect(page.locator(".drop.over")).to_have_count(0)


def test_files_and_folders_are_dropped(page: Page, service: Service, folder: Path) -> None:
    there = folder / "drop"
    choose(page, "given")
    expect(page.locator("[data-name]").first).to_be_visible()
    drop(page, ".drop", there / "a.png", there / "table.csv", there / "plate 1")
    chosen = page.get_by_label("Chosen images")
    expect(page.locator(".drop")).to_contain_text("122 images")  # readers hand out a hundred at a time
    names = chosen.locator("li span:first-child").all_text_contents()
    assert names[:4] == ["a.png", "plate 1/deep/z.tif", "plate 1/f0.png", "plate 1/f1.png"]  # in the order of people
    assert names[-1] == "plate 1/f119.png"
    note = page.locator(".note", has_text="left out")
    expect(note).to_contain_text("3 files left out")
    for name in ("table.csv", "plate 1/notes.txt", "plate 1/Thumbs.db"):
        expect(note).to_contain_text(name)
    drop(page, "h1", there / "a.png")  # beside the zone: neither twice, nor does the browser leave the page
    expect(page.locator(".drop")).to_contain_text("122 images")
    page.get_by_role("button", name="Remove all").click()
    expect(chosen.locator("li")).to_have_count(0)
    drop(page, ".drop", there / "table.csv", there / "a.png")
    page.get_by_role("button", name="Send anyway").click()
    expect(chosen.locator("li span:first-child")).to_have_text(["a.png", "table.csv"])
    page.get_by_role("button", name="Segment").click()
    page.wait_for_url(re.compile("#/jobs/"))
    expect(page.locator("main .state.succeeded")).to_be_visible()  # it is a picture, whatever it is called
    expect(page.get_by_label("Images", exact=True).locator("option")).to_have_text(["a.png · 2", "table.csv · 2"])
    expect(page.locator(".side")).to_contain_text("4 in all 2 images")
    with page.expect_request(re.compile("/images/1")):
        page.route(re.compile("/images/1"), lambda route: None)  # it takes for ever
        page.get_by_label("Images", exact=True).select_option("1")
    expect(page.get_by_label("Objects shown")).to_have_text("…")  # not the number of the one before
    expect(page.locator(".which")).to_contain_text("table.csv · 2 of 2")
    page.unroute_all(behavior="ignoreErrors")
    assert page.locator("input[type=file][webkitdirectory]").count() == 0  # the form is away, and not lost
    page.get_by_role("link", name="Same images again").click()
    expect(chosen.locator("li")).to_have_count(2)
    expect(page.get_by_label("Executor", exact=True)).to_have_value("given")


def test_environments_that_are_built_wait_or_have_failed(page: Page, folder: Path) -> None:
    about = page.locator(".about")
    choose(page, "broken")
    expect(about).to_contain_text("its environment could not be built")
    failed = page.get_by_role("region", name="The environment could not be built")
    expect(failed).to_contain_text("nothing-0.1")
    expect(failed).to_contain_text("The author of the executor has to correct its requirements. A new job tries")
    choose(page, "wait")
    expect(about).to_contain_text("will be built soon")
    expect(about).to_contain_text("You can submit already")
    choose(page, "slow")
    expect(about).to_contain_text("is being built now")
    expect(page.locator("#executor option", has_text="slow")).to_have_text("slow (being built)")
    (folder / "go").touch()
    expect(about).to_contain_text("its environment is ready")  # without a reload
    expect(page.locator("#executor option", has_text="slow")).to_have_text("slow")
    expect(about).not_to_contain_text("is being built")


def test_a_failure_in_words_of_the_page_and_again_with_another_setting(page: Page, folder: Path) -> None:
    choose(page, "given")
    expect(page.locator("[data-name]").first).to_be_visible()
    page.locator("#images").set_input_files(folder / "two.ome.tif")
    page.locator("#images").set_input_files([{"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"}])
    page.get_by_role("button", name="Segment").click()
    failed = page.get_by_role("region", name="The job has failed")
    expect(failed).to_contain_text("2 of 2 inputs cannot be used")
    expect(failed.locator("pre")).to_contain_text("two.ome.tif has 2 channels")
    expect(failed.locator("pre")).to_contain_text("broken.png is a text file, not an image")
    expect(failed).to_contain_text("On this page: “Channel”")
    assert str(folder) not in (failed.text_content() or "")  # where it lies on the server is nobody's business
    page.get_by_role("link", name="Same images again").click()
    page.get_by_role("button", name="Remove broken.png").click()
    expect(page.get_by_role("button", name="Remove two.ome.tif")).to_be_focused()
    page.get_by_text("Which planes, and where it runs").click()
    page.get_by_label("Channel").fill("1")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator("main .state.succeeded")).to_be_visible()


def test_a_job_that_ends_while_nobody_hears_it(page: Page, service: Service, folder: Path) -> None:
    choose(page, "given")
    page.locator('[data-name="name"] input').fill("slow")
    page.locator("#images").set_input_files(folder / "drop" / "a.png")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator(".log")).to_contain_text("second 1")
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_contain_text("connection to the server is lost")
    job = page.url.rpartition("/")[2]
    service.http.delete(f"/jobs/{job}")
    assert service.wait(job)["state"] == "cancelled"
    page.context.set_offline(False)
    expect(page.locator("main .state.cancelled")).to_be_visible()
    expect(page.locator("#connection")).to_be_hidden()
    expect(page.get_by_role("region", name="Cancelled")).to_be_visible()


def test_an_end_that_cannot_be_asked_about_at_first(page: Page, service: Service, folder: Path) -> None:
    choose(page, "given")
    page.locator('[data-name="name"] input').fill("slow")
    page.locator("#images").set_input_files(folder / "drop" / "a.png")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator(".log")).to_contain_text("second 1")
    job = page.url.rpartition("/")[2]
    page.route(f"**/jobs/{job}", lambda route: route.abort())
    service.http.delete(f"/jobs/{job}")
    expect(page.locator("#connection")).to_contain_text("connection to the server is lost")
    page.unroute_all()
    expect(page.get_by_role("region", name="Cancelled")).to_be_visible()
    expect(page.locator("#connection")).to_be_hidden()


def test_an_image_that_cannot_be_had_at_first(page: Page, folder: Path) -> None:
    page.route("**/images/0?*", lambda route: route.abort())
    choose(page, "given")
    page.locator("#images").set_input_files(folder / "drop" / "a.png")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator("main .state.succeeded")).to_be_visible()
    expect(page.get_by_role("region", name="This image cannot be shown")).to_be_visible()
    page.unroute_all()
    expect(page.get_by_role("status", name="Objects shown")).to_have_text("2")
    expect(page.get_by_role("region", name="This image cannot be shown")).to_have_count(0)


def test_a_server_that_starts_again(page: Page, service: Service, folder: Path) -> None:
    choose(page, "given")
    page.locator('[data-name="name"] input').fill("slow")
    page.locator("#images").set_input_files(folder / "drop" / "a.png")
    page.get_by_role("button", name="Segment").click()
    expect(page.locator(".log")).to_contain_text("second 1")
    service.process.terminate()
    service.process.wait(60)
    expect(page.locator("#connection")).to_contain_text("connection to the server is lost")
    again = Service(
        folder / "home", folder / "config", "--port", str(urlsplit(service.url).port), server=configuration(folder)
    )
    service.__dict__.update(vars(again))  # the tests go on with it
    expect(page.locator("#connection")).to_be_hidden()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("main .state.cancelled")).to_be_visible()
    lines = [line for line in (page.locator(".log").text_content() or "").splitlines() if line.startswith("second ")]
    assert lines == list(dict.fromkeys(lines))  # nothing twice


# ------------------------------------------------------------------------------------------------------------ keyboard


def focused(page: Page) -> str:
    """What has the focus: its id, or what it is called."""
    script = "() => { const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent; }"
    return str(page.evaluate(script)).strip()


def tab_to(page: Page, what: str, most: int = 60) -> None:
    """Press Tab until `what` has the focus. Each stop shows where it is."""
    passed = []
    for _ in range(most):
        page.keyboard.press("Tab")
        passed.append(focused(page))
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or passed[-1] == "images", passed[-1]  # the drop zone around it shows the focus
        if passed[-1].startswith(what):
            return
    raise AssertionError(f"{what} is not reached: {passed}")


def test_from_images_to_an_export_without_a_mouse(page: Page, service: Service, folder: Path) -> None:
    page.on("filechooser", lambda _: None)  # from now on: whoever asks only at the key is told too late at times
    expect(page.locator("#executor option")).not_to_have_count(1)
    tab_to(page, "executor")
    page.keyboard.type("given")
    expect(page.locator("[data-name]").first).to_be_visible()
    tab_to(page, "images")
    plain = page.locator(".panel").first.evaluate("(panel) => getComputedStyle(panel).borderColor")
    expect(page.locator(".drop")).not_to_have_css("border-color", plain)  # it changes within a moment
    with page.expect_file_chooser() as files:
        page.keyboard.press("Enter")
    files.value.set_files([folder / "drop" / "a.png", folder / "two.ome.tif"])
    tab_to(page, "Choose a folder")
    with page.expect_file_chooser() as tree:
        page.keyboard.press("Enter")
    tree.value.set_files(folder / "drop" / "plate 1" / "deep")
    expect(page.get_by_label("Chosen images").locator("li")).to_have_count(3)
    tab_to(page, "Remove two.ome.tif")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Chosen images").locator("li")).to_have_count(2)
    tab_to(page, "threshold, slider")
    page.keyboard.press("ArrowRight")
    tab_to(page, "Segment")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("#/jobs/"))
    expect(page.locator("main .state.succeeded")).to_be_visible()
    job = page.url.rpartition("/")[2]
    assert service.http.get(f"/jobs/{job}").json()["parameters"] == {"threshold": "0.51"}
    tab_to(page, "least")
    page.keyboard.press("End")
    expect(page.get_by_label("Objects shown")).to_have_text("0")
    page.keyboard.press("Home")
    expect(page.get_by_label("Objects shown")).to_have_text("2")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the first label
    expect(page.get_by_label("Objects shown")).to_have_text("1")
    tab_to(page, "Images")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".which")).to_contain_text("2 of 2")
    with page.expect_download() as download:
        tab_to(page, "COCO")
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".zip")


WORKS = {"button", "link", "textbox", "combobox", "listbox", "checkbox", "slider", "spinbutton", "radio", "option"}
NAMED = WORKS | {"image", "img", "progressbar", "region", "form", "navigation", "complementary", "heading", "log"}


def unnamed(page: Page) -> list[str]:
    """Nodes of the accessibility tree that a screen reader would call by nothing."""
    client = page.context.new_cdp_session(page)
    found, roles = [], set()
    for node in client.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value", "")
        roles.add(role.lower())
        if not node.get("ignored") and role.lower() in NAMED and not node.get("name", {}).get("value", "").strip():
            described: Any = client.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
            found.append(f"{role}: <{described['nodeName']} {described.get('attributes')}>")
    assert roles & WORKS, roles  # it was the page that was looked at
    return found


def test_everything_has_a_name_for_screen_readers(page: Page, service: Service, folder: Path) -> None:
    assert unnamed(page) == []
    choose(page, "given")
    page.get_by_text("Which planes, and where it runs").click()
    page.locator("#images").set_input_files([folder / "drop" / "a.png", folder / "drop" / "table.csv"])
    expect(page.locator("[data-name]").first).to_be_visible()
    assert unnamed(page) == []
    choose(page, " other")
    assert unnamed(page) == []
    choose(page, "broken")
    expect(page.get_by_role("region", name="The environment could not be built")).to_be_visible()
    assert unnamed(page) == []
    sent = {name: ("a.png", (folder / "drop" / "a.png").read_bytes()) for name in ("images",)}
    for parameters, state in (("{}", "succeeded"), ('{"name": "crash"}', "failed")):
        form = {"executor": "given", "parameters": parameters}
        job = service.http.post("/jobs", data=form, files=sent).json()["job"]
        assert service.wait(job)["state"] == state
        page.goto(f"{service.url}/#/jobs/{job}")
        expect(page.get_by_text("How it was made")).to_be_visible()
        if state == "succeeded":
            expect(page.get_by_label("Objects shown")).to_have_text("2")
        for summary in page.locator("summary").all():
            summary.click()
        assert unnamed(page) == []
        assert page.locator("h1").count() == 1
        assert page.title().startswith(state)
