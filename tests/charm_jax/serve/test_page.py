"""The page in headless Chromium: needs /usr/bin/chromium and the package playwright."""

import contextlib
import threading
from pathlib import Path

import matplotlib
import pytest

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api")
app = pytest.importorskip("charm_jax.serve.app")
server = pytest.importorskip("charm_jax.serve.server")
CHROMIUM = Path("/usr/bin/chromium")
PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
MARKUP = "<img src=x onerror=document.title=1>"

# The answers of the server with markup for the name of a finding and before those of cases.
POISON = f"""
const real = fetch;
window.fetch = async (...given) => {{
  const answer = await real(...given);
  const text = (await answer.text()).replaceAll("Effusion", "{MARKUP}");
  return new Response(text.replaceAll('"case":"', '"case":"{MARKUP}'), answer);
}};
"""


@pytest.fixture(scope="module")
def address(service, decoder):
    """A server on loopback."""
    made = server.server_of(app.create_app(service, decoder))
    with server.listening("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=made.run, args=([socket],))
        thread.start()
        yield server.address(socket)
        made.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with (
        sync_api.sync_playwright() as playwright,
        contextlib.closing(
            playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        ) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def chest(finished, service, decoder):
    """An image that is not out-of-distribution and has evidence."""
    phantom = finished[0] / "data/phantom"
    client_module = pytest.importorskip("starlette.testclient")
    with client_module.TestClient(app.create_app(service, decoder), "http://127.0.0.1") as client:
        for name in (phantom / "test_list.txt").read_text().split():
            content = (phantom / "images" / name).read_bytes()
            record = client.post("/api/predict", files={"image": content}).json()
            if record["findings"] and record["evidence"]:
                return phantom / "images" / name
    pytest.fail("no image has a finding")


@contextlib.contextmanager
def opened(browser, address, **options):
    """The page; nothing may be written to its console, and nothing asked from elsewhere."""
    page = browser.new_page(**options)
    noise, asked = [], []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert not noise
    assert all(url.startswith((address, "data:")) for url in asked), asked


def upload(page, path):
    page.set_input_files("#file", path)
    sync_api.expect(page.locator("#image-title")).to_have_text(path.name)


def shown(page):
    """The texts of the scores."""
    return [" ".join(text.split()) for text in page.locator("td.score").all_text_contents()]


def pixels(page):
    return page.evaluate("document.getElementById('canvas').toDataURL()")


def test_an_upload_is_drawn_with_findings_and_overlays(browser, address, chest):
    with opened(browser, address) as page:
        upload(page, chest)
        assert chest.name in page.inner_text("#image-title")
        scores = [float(text.split()[0].strip("<")) for text in shown(page)]
        found = page.locator("#rows tr.found").count()
        assert found > 0
        assert scores[:found] == sorted(scores[:found], reverse=True)
        assert scores[found:] == sorted(scores[found:], reverse=True)
        page.locator("#rows input").first.check()
        name = page.locator("#rows label").first.inner_text()
        assert name in page.inner_text("#caption")
        page.get_by_label("attention").check()
        with_overlay = pixels(page)
        page.locator("#opacity").fill("0")
        without = pixels(page)
        page.locator("#opacity").fill("90")
        assert pixels(page) not in (with_overlay, without)
        page.get_by_label("none").check()
        assert pixels(page) == without
        page.locator("#window").fill("30")
        assert pixels(page) != without
        page.get_by_text("Reset the view").click()
        assert pixels(page) == without
        page.locator("#canvas").press("+")
        page.locator("#canvas").press("ArrowLeft")
        assert pixels(page) != without
        page.locator("#canvas").press("0")
        assert pixels(page) == without


def test_a_case_is_forgotten_and_remembered_by_keys(browser, address, chest):
    with opened(browser, address) as page:
        upload(page, chest)
        before = shown(page)
        switch = page.get_by_role("switch").first
        switch.focus()
        page.keyboard.press("Space")
        page.wait_for_selector("#changes:not([hidden])")
        assert switch.get_attribute("aria-checked") == "true"
        assert "Without 1 case" in page.inner_text("#changes-text")
        assert "Without 1 case" in page.text_content("#status")
        assert page.locator("#instead-cards article").count() > 0
        assert shown(page) != before
        page.get_by_text("Remember all").click()
        page.wait_for_selector("#changes", state="hidden")
        sync_api.expect(page.locator("td.score")).to_have_text(before)


def test_forgetting_while_another_image_is_read_keeps_that_one(browser, address, chest, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(chest.read_bytes())
    with opened(browser, address) as page:
        upload(page, chest)
        waiting = []

        def hold(route):
            waiting.append(route)

        page.route("**/api/explain", hold)
        with page.expect_request("**/api/explain"):
            page.set_input_files("#file", other)
        page.get_by_role("switch").first.click()
        page.wait_for_selector("#changes:not([hidden])")
        waiting[0].continue_()
        sync_api.expect(page.locator("#image-title")).to_have_text(other.name)
        assert page.locator("#changes").is_hidden()


def test_what_is_no_x_ray_gets_a_banner_and_no_diagnosis(browser, address, chest, tmp_path):
    with opened(browser, address) as page:
        upload(page, chest)
        page.set_input_files("#file", PHOTOGRAPH)
        page.wait_for_selector("#findings", state="hidden")
        assert "no finding is reported" in page.inner_text("#alert")
        assert page.locator("#memory").is_hidden()
        assert page.locator("#overlays").is_hidden()
        assert "0." not in page.inner_text("main").replace("1.0", "")
        upload(page, chest)
        page.wait_for_selector("#findings", state="visible")
        assert page.locator("#alert").is_hidden()


def test_what_cannot_be_read_is_said(browser, address, tmp_path):
    (tmp_path / f"{MARKUP}.png").write_bytes(b"no image")
    page = browser.new_page()
    page.goto(address)
    page.set_input_files("#file", tmp_path / f"{MARKUP}.png")
    page.wait_for_selector("#alert:not([hidden])")
    assert "cannot be read" in page.inner_text("#alert")
    assert page.locator("#result").is_hidden()
    page.close()


def test_markup_in_names_is_shown_as_text(browser, address, chest, tmp_path):
    named = tmp_path / f"{MARKUP}.png"
    named.write_bytes(chest.read_bytes())
    with opened(browser, address) as page:
        page.add_init_script(POISON)
        page.reload()
        upload(page, named)
        assert MARKUP in page.inner_text("#image-title")
        assert MARKUP in page.inner_text("#rows")
        assert MARKUP in page.inner_text("#cards")
        assert page.locator("img[src=x]").count() == 0
        assert page.title() != "1"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_keeps_the_disclaimer_in_sight(browser, address, chest, width, scheme):
    size = {"width": width, "height": 800}
    with opened(browser, address, viewport=size, color_scheme=scheme) as page:
        upload(page, chest)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        box = page.locator(".disclaimer").bounding_box()
        assert 0 <= box["y"] < 800
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_every_control_has_a_name(browser, address, chest):
    with opened(browser, address) as page:
        upload(page, chest)
        unnamed = page.evaluate(
            """[...document.querySelectorAll("input, button, canvas, img")].filter((one) =>
                !(one.labels?.length || one.ariaLabel || one.textContent.trim() || one.alt)
            ).map((one) => one.outerHTML)"""
        )
        assert not unnamed
        assert page.locator("main, header, footer, h1").count() == 4
