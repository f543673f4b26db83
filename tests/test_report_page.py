"""The page to listen on, in a browser: Chromium, headless, from a file, listened to through an analyser.

With JAXCODEC_PICTURES=FOLDER the pictures of the documentation are taken too, of the page JAXCODEC_PAGE names.
"""

import io
import math
import os
import pathlib
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from jaxcodec.report import content, webpage

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium, of Debian for example: apt-get install chromium"
)

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
SECONDS, RATE = 8.0, 16000  # long enough for a busy machine
# Every version of a clip is a tone of its own: what is heard says which is playing.
TONES = {"original": 500, "ours": 1000, "quiet": 2000, "opus": 3000}
LEVELS = [0.2, 0.2, 0.05, 0.2]
HOSTILE = "<img src=x onerror=window.broken=1>.wav"

# Listens at the end of the graph, and notes what is started and at which gains.
LISTEN = """
window.gains = []; window.starts = []; window.draw = 0;
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (this.context instanceof AudioContext && target === this.context.destination) {
    window.ear = this.context.createAnalyser();
    window.ear.fftSize = 4096;
    window.ear.smoothingTimeConstant = 0;
    connect.call(this, window.ear);
  }
  return connect.call(this, target, ...rest);
};
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...when) { window.starts.push(when); return start.apply(this, when); };
window.GainNode = class extends GainNode { constructor(...all) { super(...all); window.gains.push(this); } };
Crypto.prototype.getRandomValues = (array) => array.fill(window.draw);
window.heard = () => {
  const levels = new Float32Array(window.ear.frequencyBinCount), wave = new Float32Array(window.ear.fftSize);
  window.ear.getFloatFrequencyData(levels);
  window.ear.getFloatTimeDomainData(wave);
  const peak = levels.indexOf(Math.max(...levels));
  return { hertz: peak * window.ear.context.sampleRate / window.ear.fftSize, level: Math.max(...wave.map(Math.abs)) };
};
"""


def tone(hertz, level):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(SECONDS * RATE)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def address(codec, tmp_path_factory):
    """A page of two clips, the second with an awful name, in four versions."""
    sounds = [tone(hertz, level) for hertz, level in zip(TONES.values(), LEVELS, strict=True)]
    clips = [content.Clip(name, sounds[0]) for name in ("voice/first.wav", HOSTILE)]
    named = zip(("original", "jaxcodec", "jaxcodec", "Opus"), ("", "1", "4", "6"), sounds, strict=True)
    versions = [content.Version(system, setting, [sound] * 2, [2000] * 2) for system, setting, sound in named]
    rows = [
        dict(system=version.system, setting=version.setting, clip=clip.name, seconds=SECONDS, bytes=2000)
        | dict(signal_energy=2.0, error_energy=1.0, snr=3.0 + index, estoi=0.8)
        for index, version in enumerate(versions[1:])
        for clip in clips
    ]
    page = webpage.Page("Listen", "a model", "jaxcodec report out", "tones")
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(webpage.compose(page, codec, clips, content.Rendered(versions, rows, [], [])))
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page; at the end of the test, nothing may have been complained of or asked of a network."""
    contexts, troubles = [], []

    def visit(address=address, width=1000, height=1100, **options):
        contexts.append(browser.new_context(viewport=dict(width=width, height=height), **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url != address and troubles.append(request.url[:200]))
        page.add_init_script(LISTEN)
        page.goto(address)
        wait_until(page, "document.querySelector('#player .scope').getAttribute('aria-valuemax') > 0")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []


def wait_until(page, condition):
    """Waits for a JavaScript condition; Playwright's own way to do so needs what the page's policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def wait_to_hear(page, version):
    """Waits until what sounds is the tone of `version`."""
    wait_until(page, f"window.ear && Math.abs(heard().hertz - {TONES[version]}) < 8 && heard().level > 0.03")


def position(page, deck="#player"):
    return float(page.get_attribute(f"{deck} .scope", "aria-valuenow"))


def gains(page, count=4):
    return [round(gain, 3) for gain in page.evaluate(f"window.gains.slice(-{count}).map((node) => node.gain.value)")]


def pressed(page, deck="#player"):
    """The version that its button says is heard."""
    return page.locator(f"{deck} .version[aria-pressed=true]:visible").inner_text().split("\n")[0]


def test_the_page_opens_from_a_file_and_asks_for_nothing(visit):
    page = visit()
    assert page.title() == "Listen"
    assert page.locator("#player .now-clip").inner_text() == "voice/first.wav"
    assert page.evaluate("window.broken") is None and page.locator("img").count() == 0
    assert page.get_by_role("button", name="<img src=x onerror=window.broken=1>").is_visible()


def test_it_plays_the_original_alone_and_the_playhead_moves(visit):
    page = visit()
    page.get_by_role("button", name="Play").first.click()
    wait_to_hear(page, "original")
    assert gains(page) == [1, 0, 0, 0]
    wait_until(page, "document.querySelector('#player .scope').getAttribute('aria-valuenow') >= 0.6")
    assert page.evaluate("parseFloat(document.querySelector('#player .playhead').style.left.slice(5))") > 5
    page.get_by_role("button", name="Pause").first.click()
    rest = position(page)
    page.wait_for_timeout(200)
    assert position(page) == rest > 0


def test_versions_run_together_and_switching_keeps_the_position(visit):
    page = visit()
    page.get_by_role("button", name="Play").first.click()
    wait_to_hear(page, "original")
    before = position(page)
    page.get_by_role("button", name=re.compile("^Opus 6")).click()
    wait_to_hear(page, "opus")
    assert gains(page) == [0, 0, 0, 1] and pressed(page) == "Opus 6"
    page.keyboard.press("2")
    wait_to_hear(page, "ours")
    assert gains(page) == [0, 1, 0, 0] and pressed(page) == "jaxcodec 1"
    assert before < position(page) < SECONDS
    starts = page.evaluate("window.starts")
    assert len(starts) == 4 and all(start == starts[0] for start in starts)  # to the sample, and never anew


def test_levels_are_those_of_the_versions(visit):
    page = visit()
    page.keyboard.press(" ")
    for key, version, level in (("3", "quiet", 0.05), ("2", "ours", 0.2)):
        page.keyboard.press(key)
        wait_to_hear(page, version)
        page.wait_for_timeout(300)  # the analyser's window, all of it after the switch
        assert page.evaluate("heard().level") == pytest.approx(level, rel=0.05)


def test_the_end_stops_and_a_loop_goes_on(visit):
    page = visit()
    page.locator("#player .scope").focus()
    for key in ("End", "ArrowLeft", " "):
        page.keyboard.press(key)
    page.wait_for_selector("#player.playing")
    page.wait_for_selector("#player:not(.playing)")
    assert position(page) == 0
    for key in ("l", "End", "ArrowLeft", " "):
        page.keyboard.press(key)
    assert page.locator("#player .loop").get_attribute("aria-pressed") == "true"
    assert position(page) > SECONDS - 1.1
    wait_until(page, f"document.querySelector('#player .scope').getAttribute('aria-valuenow') < {SECONDS / 2}")
    assert page.locator("#player.playing").count() == 1


def test_a_press_on_the_waveform_seeks(visit):
    page = visit()
    box = page.locator("#player .wave").bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 10)
    assert position(page) == pytest.approx(0.6 * SECONDS, abs=0.06)
    page.keyboard.press("Shift+ArrowLeft")
    assert position(page) == pytest.approx(0.6 * SECONDS - 0.1, abs=0.06)
    page.get_by_role("button", name="Play").first.click()
    wait_to_hear(page, "original")
    assert page.evaluate("window.starts.at(-1)[1]") == pytest.approx(0.6 * SECONDS - 0.1, abs=0.01)


def test_the_other_clip_opens_with_its_own_figures(visit):
    page = visit()
    page.get_by_role("button", name="<img").click()
    assert page.locator("#player .now-clip").inner_text() == HOSTILE
    assert page.locator(".versions table:visible").count() == 1
    assert page.get_by_role("region", name=re.compile("Versions of <img")).is_visible()


BRIGHTEST = """(selector) => {
  const canvas = document.querySelector(selector);
  const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  const column = pen.getImageData(canvas.width >> 1, 0, 1, canvas.height).data;
  const rows = Array.from({ length: canvas.height }, (_, y) => column[4 * y] + column[4 * y + 1] + column[4 * y + 2]);
  return [1 - rows.indexOf(Math.max(...rows)) / canvas.height, Math.max(...rows) - Math.min(...rows)];
}"""


def test_spectrograms_show_the_version_and_what_it_adds_to_the_original(visit):
    page = visit()
    share, _ = page.evaluate(BRIGHTEST, ".spectrogram canvas")
    assert share == pytest.approx(TONES["original"] / 8000, abs=0.01)
    assert page.evaluate(BRIGHTEST, ".error canvas")[1] == 0  # the original has no error
    page.keyboard.press("4")
    share, _ = page.evaluate(BRIGHTEST, ".spectrogram canvas")
    assert share == pytest.approx(TONES["opus"] / 8000, abs=0.01)
    assert page.evaluate(BRIGHTEST, ".error canvas")[1] > 300
    page.locator(".gallery summary").click()
    page.wait_for_selector(".gallery canvas")
    assert page.locator(".gallery canvas").count() == 7  # four spectrograms, three errors
    assert page.locator(".gallery").get_by_role("img", name="Opus 6: error").is_visible()


READY = ".trial[aria-busy=false]"


def start_trials(page, draw, a="Original", b="Opus 6"):
    """Starts the blind test with X drawn as A (draw 0) or B (1)."""
    page.evaluate(f"window.draw = {draw} * 0xffffffff")
    page.select_option("#choose-a", label=a)
    page.select_option("#choose-b", label=b)
    page.locator("#abx-start").click()
    page.wait_for_selector(READY)


def test_x_is_what_was_drawn_and_a_and_b_are_what_was_chosen(visit):
    for draw, x in ((0, "original"), (1, "opus")):
        page = visit()
        start_trials(page, draw)
        page.keyboard.press(" ")
        for key, version in (("a", "original"), ("b", "opus"), ("x", x)):
            page.keyboard.press(key)
            wait_to_hear(page, version)
            assert pressed(page, "#abx") == key.upper()


def test_nothing_in_the_document_tells_what_x_is(visit):
    documents = []
    for draw in (0, 1):
        page = visit()
        start_trials(page, draw)
        page.keyboard.press("x")
        page.keyboard.press(" ")
        page.wait_for_selector("#abx.playing")
        page.keyboard.press(" ")
        page.keyboard.press("Home")
        page.locator("#abx .scope").focus()
        page.keyboard.press("Home")
        documents.append(page.evaluate("document.documentElement.outerHTML"))
        assert page.locator(".playing").count() == 0 and position(page, "#abx") == 0
    assert documents[0] == documents[1]


def test_the_score_counts_right_and_wrong_answers(visit):
    page = visit()
    start_trials(page, 0)
    verdict, score = page.locator("#verdict"), page.locator("#score")
    assert score.inner_text() == "No trials yet."
    assert page.get_by_role("button", name="X is A").is_disabled()  # until something was heard
    page.keyboard.press("1")
    assert verdict.inner_text() == "Play it first." and score.inner_text() == "No trials yet."
    page.keyboard.press(" ")
    page.get_by_role("button", name="X is A").click()
    assert verdict.inner_text() == "Right: X was A, Original."
    assert score.inner_text() == "1 of 1 right, p = 0.50"
    page.wait_for_selector(READY)
    page.keyboard.press(" ")
    page.get_by_role("button", name="X is B").click()
    assert verdict.inner_text() == "Wrong: X was A, Original."
    assert score.inner_text() == "1 of 2 right, p = 0.75"
    page.evaluate("window.draw = 0xffffffff")
    page.wait_for_selector(READY)
    page.keyboard.press(" ")
    page.keyboard.press("1")  # X was drawn before
    page.wait_for_selector(READY)
    page.keyboard.press(" ")
    page.keyboard.press("2")
    assert verdict.inner_text() == "Right: X was B, Opus 6."
    assert score.inner_text() == f"3 of 4 right, p = {(math.comb(4, 3) + 1) / 16:.2f}"
    assert page.locator(".score").get_attribute("aria-live") == "polite"
    page.get_by_role("button", name="Reset").click()
    assert score.inner_text() == "No trials yet."
    assert page.locator("#choose-a").is_enabled() and not page.locator(".trial").is_visible()


def test_two_of_the_same_cannot_be_compared(visit):
    page = visit()
    page.select_option("#choose-a", label="Opus 6")
    page.select_option("#choose-b", label="Opus 6")
    page.locator("#abx-start").click()
    assert "same version" in page.locator("#verdict").inner_text()
    assert not page.locator(".trial").is_visible()


def test_one_deck_plays_at_a_time(visit):
    page = visit()
    page.get_by_role("button", name="Play").first.click()
    page.wait_for_selector("#player.playing")
    start_trials(page, 0)
    page.keyboard.press("b")
    page.locator("#abx .play").click()
    wait_to_hear(page, "opus")
    assert page.locator(".playing").count() == 1


def test_everything_is_reached_by_the_tab_key_and_the_focus_is_seen(visit):
    page = visit()
    reached, outlines = [], []
    for _ in range(26):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText.split('\\n')[0]")
        )
        outlines.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    wanted = ["To the player", "first", "Play", "Loop", "Original", "jaxcodec 4", "Position", "Keys", "Start"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)
    assert set(outlines[: places[-1]]) == {"solid"}


def test_a_button_with_the_focus_keeps_its_space_bar(visit):
    page = visit()
    button = page.locator("#player .version:visible").nth(2)
    button.focus()
    page.keyboard.press(" ")
    assert pressed(page) == "jaxcodec 4" and page.locator(".playing").count() == 0
    page.keyboard.press(" ")  # pressed already: now it plays
    page.wait_for_selector("#player.playing")


def test_versions_are_chosen_without_scrolling_and_a_row_of_the_table_chooses_too(visit):
    page = visit(width=1280, height=900)
    boxes = [button.bounding_box() for button in page.locator("#player .version").all()]
    assert len(boxes) == 4 and max(box["y"] + box["height"] for box in boxes) < 900
    page.get_by_role("row", name="Opus 6").first.click()
    assert pressed(page) == "Opus 6"
    waveform = page.locator("#player .wave").bounding_box()
    for caption in page.locator("#player .caption").all():  # none stands on the picture
        box = caption.bounding_box()
        assert box["y"] + box["height"] <= waveform["y"] + 1 or box["y"] >= waveform["y"] + waveform["height"] - 1


def test_a_table_that_goes_on_says_so(visit):
    hints = ".hint:not([hidden])"
    assert visit(width=1280, height=900).locator(hints).count() == 0
    page = visit(width=320, height=740)
    page.wait_for_selector(hints)
    table = page.locator(".versions .scroll:visible")
    assert table.evaluate("(e) => e.scrollWidth > e.clientWidth")
    table.evaluate("(e) => e.scrollLeft = 100")
    first = page.get_by_role("rowheader", name="Opus 6").first.bounding_box()
    assert first["x"] >= 0  # the names stay


@pytest.mark.parametrize("width", [360, 320])
def test_a_phone_shows_the_page_without_scrolling_sideways(visit, width):
    page = visit(width=width, height=740, has_touch=True, is_mobile=True)
    page.locator(".gallery summary").click()
    page.wait_for_selector(".gallery canvas")
    page.locator(".keys summary").click()
    start_trials(page, 0)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    for name in (".play", ".scope", "#answer-a", ".version"):
        box = page.locator(f"{name}:visible").first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 34


def test_dark_and_light_are_followed_and_motion_is_reduced(visit):
    paper = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, reduced_motion="reduce")
        paper[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        duration = page.evaluate("getComputedStyle(document.querySelector('.loop')).transitionDuration")
        assert duration == "0s"
    assert min(paper["light"]) > 200 and max(paper["dark"]) < 60


@pytest.mark.skipif("JAXCODEC_PICTURES" not in os.environ, reason="takes pictures where JAXCODEC_PICTURES says")
def test_pictures_of_the_page_are_taken(visit, address):
    folder = pathlib.Path(os.environ["JAXCODEC_PICTURES"])
    shown = os.environ.get("JAXCODEC_PAGE")
    address = pathlib.Path(shown).absolute().as_uri() if shown else address
    sizes = {
        "report": dict(width=960, height=1320),
        "report_phone": dict(width=360, height=1180, device_scale_factor=2),
    }
    for name, size in sizes.items():
        page = visit(address, **size)
        page.keyboard.press("5")
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(96, dither=Image.Dither.NONE).save(
            folder / f"{name}.png", optimize=True
        )  # a third of the size
