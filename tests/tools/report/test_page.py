"""The listening page in Chromium: playing, switching, sorting, filtering and keyboard control, opened from disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.browser import LEFT, RIGHT, SPACE, Browser, open_browser
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import RATE, save
from tests.fixtures.signals import speech_like, with_noise
from tools.report import __main__ as report
from tools.report.page import MAX_EMBEDDED_RECORDINGS, Content, Role, Version, write_page

SECONDS = 4.0
# Each version is a chirp in a band of its own, so that the frequency tells version and position.
HZ_PER_SECOND = 600
LOWEST_HZ = {"noisy": 300.0, "system": 2900.0, "clean": 5500.0}
TO_TITLE = "document.title='hacked'"
# In "</script>" the slash is the separator of folder and file.
NASTY = ["a", "b/a", "c & d #1 50%?", "е́ 語 ü", f"x</script><img src=x onerror={TO_TITLE}>", "$css ${data} `\"'"]
NASTY_SYSTEM = "<script>alert(1)</script>\"'&$x"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as started:
        yield started


def chirp(version: str, seconds: float = SECONDS, rate: int = RATE) -> np.ndarray:
    """Return a chirp that starts at the lowest frequency of the version and rises by `HZ_PER_SECOND`."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (LOWEST_HZ[version] * time + HZ_PER_SECOND * time**2 / 2))


def assert_in_step(browser: Browser, version: str) -> None:
    """Assert that the output is this version at the position that the player shows."""
    heard = browser.heard()
    # The analyser lags by half its window, 23 ms.
    assert (heard.hz - LOWEST_HZ[version]) / HZ_PER_SECOND == pytest.approx(heard.position, abs=0.1)


def content_of(folder: Path, ids: list[str]) -> Content:
    """A page without scores; the files are in folders named as the versions."""
    roles: dict[str, Role] = {"noisy": "noisy", "system": "enhanced", "clean": "clean"}
    versions = [
        Version(name, role, {recording: folder / name / f"{recording}.wav" for recording in ids})
        for name, role in roles.items()
    ]
    return Content("chirps", versions, ids, [None, None, None], "published")


@pytest.fixture(scope="module")
def chirps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of chirps with embedded media."""
    folder = tmp_path_factory.mktemp("chirps")
    for version in LOWEST_HZ:
        save(folder / f"{version}/even.wav", chirp(version))
        save(folder / f"{version}/short.wav", chirp(version)[:100])
        save(folder / f"{version}/silent.wav", np.zeros(RATE))
    save(folder / "noisy/odd.wav", chirp("noisy"))
    save(folder / "system/odd.wav", np.stack([chirp("system", 2.0, 44_100)] * 2, axis=1), rate=44_100)
    save(folder / "clean/odd.wav", chirp("clean", 3.0, 48_000), rate=48_000)
    save(folder / "noisy/half.wav", chirp("noisy"))
    save(folder / "clean/half.wav", chirp("clean"))
    (folder / "system/half.wav").write_bytes(b"not sound")
    (problem,) = write_page(folder / "page", content_of(folder, ["even", "half", "odd", "short", "silent"]), jobs=1)
    assert problem.startswith(f"{folder}/system/half.wav: not an audio file")
    return folder / "page/index.html"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with scores and media beside it, made by the command; some file names contain HTML."""
    folder = tmp_path_factory.mktemp("nasty # folder")
    ids = [*NASTY, *(f"file_{number}" for number in range(MAX_EMBEDDED_RECORDINGS + 1 - len(NASTY)))]
    for number, name in enumerate(ids):
        clean = speech_like(0.6, seed=number)
        save(folder / f"clean/{name}.wav", clean)
        save(folder / f"noisy/{name}.wav", with_noise(clean, 3 + (7 * number) % 11))
        save(folder / f"first/{name}.wav", with_noise(clean, 15 + (5 * number) % 7))
        # "file_0" has no scores.
        save(folder / f"second/{name}.wav", 0 * clean if name == "file_0" else with_noise(clean, 5 + number))
    arguments = ["--input_noisy_wavs_dir", "noisy", "--input_clean_wavs_dir", "clean", "--output_dir", "page"]
    arguments += ["--enhanced", "first=first", "--enhanced", f"{NASTY_SYSTEM}=second"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stay_in_one_process(patch)
        assert report.main([*arguments, "--quiet"]) == 1
    return folder / "page/index.html"


def numbers(texts: list[str]) -> list[float]:
    """Return the numbers of a column without missing ones."""
    return [float(text.replace("−", "-")) for text in texts if text != "–"]


def test_list_is_sorted_by_any_column_both_ways(browser: Browser, scored: Path) -> None:
    browser.load(scored)
    ids = browser.names()
    assert set(NASTY) < set(ids)
    assert [head.get_attribute("aria-sort") for head in browser.all("#table th[aria-sort]")] == ["ascending"]
    browser.select("#version", NASTY_SYSTEM)
    for label in ("PESQ", "SSNR dB"):
        (button,) = [button for button in browser.all("#table thead button") if button.text == label]
        for order in ("descending", "ascending"):
            button.click()
            values = numbers(browser.column(label))
            assert values == sorted(values, reverse=order == "descending")
            assert len(set(values)) > 3
            (head,) = browser.all("#table th[aria-sort]")
            assert (head.text.split("\n")[0], head.get_attribute("aria-sort")) == (label, order)
            if label == "PESQ":
                assert browser.column(label)[-1] == "–"  # missing values are last in both orders
    browser.all("#table thead button")[0].click()
    assert browser.names() == ids


def test_list_is_filtered_by_name(browser: Browser, scored: Path) -> None:
    browser.load(scored)
    count = len(browser.names())
    assert browser.one("#count").text == f"{count} files"
    browser.open("file_1")
    browser.one("#filter").send_keys("FILE_")
    assert browser.names() == ["file_0", "file_1", "file_2"]
    assert browser.one("#count").text == f"3 of {count} files"
    assert len(browser.all(".player")) == 1
    browser.one("#filter").send_keys("2")
    assert browser.names() == ["file_2"]
    assert browser.all(".player") == []
    browser.one("#filter").clear()
    browser.one("#filter").send_keys(" ")
    assert len(browser.names()) == count


def test_list_shows_scores_or_gains_of_a_version(browser: Browser, scored: Path) -> None:
    browser.load(scored)
    shown: dict[str, list[float]] = {}
    for version in ("noisy", "first", NASTY_SYSTEM):
        browser.select("#version", version)
        shown[version] = numbers(browser.column("STOI"))
    browser.select("#version", "first")
    browser.one("#gain").click()
    gains = numbers(browser.column("STOI"))
    assert gains == pytest.approx(np.subtract(shown["first"], shown["noisy"]).tolist(), abs=0.0011)
    assert {text[0] for text in browser.column("STOI")} <= {"+", "−"}
    browser.select("#version", "noisy")
    assert numbers(browser.column("STOI")) == shown["noisy"]
    assert not browser.one("#gain").is_enabled()


def test_names_with_html_are_shown_as_text_and_play_without_a_network(browser: Browser, scored: Path) -> None:
    browser.requests()
    browser.messages()
    browser.load(scored)
    assert scored.stat().st_size < 10_000_000
    assert len(list(scored.parent.glob("index_files/*.js"))) == MAX_EMBEDDED_RECORDINGS + 1
    for name in NASTY:
        browser.open(name)
        assert browser.one(".panel").get_attribute("aria-label") == f"Player of {name}"
        browser.wait(lambda: browser.audible() or (not browser.playing and browser.press(SPACE)), f"sound of {name}")
        browser.choose(NASTY_SYSTEM)
        assert browser.version == NASTY_SYSTEM
    assert NASTY_SYSTEM in browser.texts("#version option")
    assert any(NASTY_SYSTEM in text for text in browser.texts("#summary th"))
    assert any(NASTY_SYSTEM in text for text in browser.texts("#paired summary"))
    assert browser.driver.title.startswith("Listening page")
    assert browser.messages() == []  # the browser reports blocked and failed requests
    requests = browser.requests()
    assert any("/index_files/000" in address for address in requests)
    assert {address.split(":")[0] for address in requests} <= {"file", "data", "blob"}


def test_switching_keeps_the_position_without_a_gap(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.messages()
    browser.open("even")
    assert browser.version == "system"
    browser.one(".play").click()
    browser.wait(lambda: browser.position > 0.3, "the player to advance")
    assert_in_step(browser, "system")
    for version in ("noisy", "clean", "system"):
        quietest, step = browser.driver.execute_async_script(
            """
            const [version, done] = arguments;
            const buttons = [...document.querySelectorAll(".versions button")];
            const offset = () => tap.context.currentTime - document.querySelector("input[type=range]").value;
            const samples = new Float32Array(1024);
            let [quietest, frames, before] = [Infinity, 0, 0];
            const frame = () => {
              tap.getFloatTimeDomainData(samples);
              quietest = Math.min(quietest, Math.hypot(...samples) / Math.sqrt(samples.length));
              if (frames === 2) before = offset();
              if (frames === 2) buttons.find((button) => button.lastChild.textContent === version).click();
              if (frames++ < 12) requestAnimationFrame(frame);
              else done([quietest, Math.abs(offset() - before)]);
            };
            requestAnimationFrame(frame);
            """,
            version,
        )
        assert browser.version == version
        assert step < 0.05
        assert quietest > 0.2  # a sine of amplitude 0.5 has 0.35
        assert_in_step(browser, version)
    assert browser.playing
    assert browser.messages() == []


def test_keys_play_seek_and_switch(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.open("even")
    browser.press("3")
    assert browser.version == "clean"
    browser.press(RIGHT, RIGHT, RIGHT, LEFT)
    assert browser.position == pytest.approx(1.0)
    browser.press(SPACE)
    browser.wait(lambda: browser.position > 1.1, "the player to advance")
    browser.press("1", RIGHT)
    assert browser.playing
    browser.wait(lambda: browser.position > 1.7 and browser.audible(), "the player to go on after the jump")
    assert_in_step(browser, "noisy")
    browser.press(SPACE)
    stopped = browser.position
    browser.wait(lambda: not browser.audible(), "silence")
    assert (browser.playing, browser.position) == (False, stopped)
    # In the filter, keys edit the text.
    browser.one("#filter").send_keys("e", LEFT, "1", SPACE)
    assert browser.one("#filter").get_attribute("value") == "1 e"
    assert browser.driver.execute_script("return document.querySelectorAll('.player').length") == 0
    browser.one("#filter").clear()


def test_player_stops_at_the_end_and_starts_over(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.open("even")
    browser.press(SPACE)
    slider = "const slider = document.querySelector('input[type=range]'); slider.value = arguments[0];"
    browser.run(f"{slider} slider.dispatchEvent(new Event('input'));", SECONDS - 0.2)
    browser.wait(lambda: not browser.playing, "the end")
    assert browser.position == pytest.approx(SECONDS)
    browser.press(SPACE)
    browser.wait(lambda: 0 < browser.position < SECONDS - 0.5, "the start")


def test_versions_of_other_lengths_and_rates_stay_in_step(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.open("odd")
    browser.press(RIGHT, SPACE)
    browser.wait(browser.audible, "the version at 44.1 kHz")
    assert_in_step(browser, "system")
    browser.press("3")
    browser.wait(lambda: browser.position > 1, "the player to advance")
    assert_in_step(browser, "clean")
    browser.press("2")
    browser.wait(lambda: browser.position > 2 and not browser.audible(), "silence after the end of the shortest")
    browser.press("1")
    browser.wait(browser.audible, "the longest version")
    assert_in_step(browser, "noisy")


def test_short_and_silent_files_play(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.messages()
    for name in ("short", "silent"):
        browser.open(name)
        browser.press(SPACE)
        browser.wait(lambda: browser.position > 0, f"{name} to play")
        assert all(image.size["width"] > 100 for image in browser.some(".frame img"))
    assert browser.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    assert browser.messages() == []


def test_unreadable_version_cannot_be_chosen(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.open("half")
    assert [button.is_enabled() for button in browser.all(".versions button")] == [True, False, True]
    assert "not an audio file" in browser.one("#table .problem").text
    assert "1 problem with a file" in browser.one("#files details").text
    browser.press("2")
    assert browser.version == "noisy"
    browser.press("3", SPACE)
    browser.wait(browser.audible, "the clean version")
    assert_in_step(browser, "clean")


def test_page_without_its_folder_shows_a_message(browser: Browser, scored: Path, tmp_path: Path) -> None:
    alone = tmp_path / "index.html"
    alone.write_bytes(scored.read_bytes())
    browser.load(alone)
    browser.all("#table button.open")[0].click()
    browser.wait(lambda: "belongs beside this page" in browser.one(".panel").text, "the message")
    browser.messages()  # the browser reports the missing file


def test_click_on_a_picture_seeks(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.open("even")
    browser.one("img[alt='spectrogram of clean']").click()  # in its middle
    assert browser.position == pytest.approx(SECONDS / 2, abs=0.05)
    assert browser.version == "clean"


def test_elements_have_names_for_screen_readers(browser: Browser, chirps: Path) -> None:
    browser.load(chirps)
    browser.open("even")
    assert browser.run("return document.activeElement.getAttribute('aria-label')") == "Player of even"
    assert [button.get_attribute("aria-expanded") for button in browser.all("button.open")].count("true") == 1
    assert browser.one(".transport input").accessible_name == "Position"
    assert browser.one(".transport input").get_attribute("aria-valuetext") == "0.0 of 4.0 seconds"
    nameless = [
        element.get_attribute("outerHTML")
        for element in browser.some("button, input, select")
        if element.is_displayed() and not element.accessible_name
    ]
    assert nameless == []
    assert all(image.get_attribute("alt") for image in browser.some("img"))
    assert browser.texts("#table thead th") == ["file", "seconds"]


def test_page_fits_a_phone(browser: Browser, scored: Path) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.load(scored)
        browser.open("a")
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert browser.one(".panel").size["width"] <= 390
        assert all(button.size["height"] >= 40 for button in browser.some(".player button"))
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
