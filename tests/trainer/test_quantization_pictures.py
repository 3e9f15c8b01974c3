"""The page of pictures: complete in itself, and its bars as long as what they stand for."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.diagnostics.diagnostics import Diagnostics
from trainer.reporting.quantization_pictures import WIDTH, SiteWeights, draw_page
from trainer.reporting.quantization_report import make_page

TERNARY = {
    "bits": 1.585,
    "weight_sqnr_db": 7.2,
    "minus_ratio": 0.25,
    "zero_ratio": 0.45,
    "plus_ratio": 0.3,
}
READINGS = {
    "layers.0.ffn.up": TERNARY,
    "layers.1.ffn.up": {"bits": 8.0, "weight_sqnr_db": 43.8},
    "layers.0.ffn.up_input": {"bits": 4.0, "sqnr_db": 20.0, "overload_ratio": 0.01},
    "head.input": {"bits": 8.0, "sqnr_db": 40.0, "overload_ratio": 0.003},
}
HISTOGRAM = ([-1.0, 0.0, 1.0], [3.0, 1.0])
WEIGHTS = {"layers.0.ffn.up": SiteWeights(HISTOGRAM, None, (-0.5, 0.5))}


def page(readings=READINGS, weights=WEIGHTS, alarms=()) -> str:
    return draw_page("A < B", ["one fact"], alarms, readings, weights, ideal_overload=0.003)


def figure(text: str, title: str) -> ElementTree.Element:
    """The table under a title, which has to be well-formed."""
    [found] = re.findall(rf"<h2>{title}</h2>.*?(<table>.*?</table>)", text, re.DOTALL)
    return ElementTree.fromstring(found)


def widths(cell: ElementTree.Element) -> list[float]:
    """Of the bars in it, without the frame behind them."""
    return [float(rect.attrib["width"]) for rect in cell.iter("rect")][1:]


def test_the_page_needs_nothing_but_itself():
    """No script and no address: it can be sent to somebody."""
    text = page()

    assert not re.search(r"<script|src=|href=|url\(|http", text)
    assert "A &lt; B" in text
    assert "one fact" in text


def test_a_layer_is_a_row_and_a_site_a_column():
    """What is of no layer has a row of its own."""
    table = figure(page(), "Signal to noise of the activations")

    head, *rows = [[cell.text for cell in row.iter("th")] for row in table.iter("tr")]
    assert head == [None, "ffn.up_input", "input"]
    assert rows == [["layer 0"], ["head"]]


def test_the_shares_of_the_codes_fill_their_bar():
    """-1, 0 and +1 from left to right, and as numbers below."""
    [cell] = figure(page(), "Occupancy of the ternary codes").iter("td")

    assert widths(cell) == pytest.approx([0.25 * WIDTH, 0.45 * WIDTH, 0.3 * WIDTH], abs=0.1)
    assert cell.findtext("small") == "25 · 45 · 30"


def test_bars_of_one_figure_have_one_scale():
    """So that layers can be compared; the line is on it, too."""
    cells = figure(page(), "Overload of the activations").iter("td")

    up, head = [cell for cell in cells if len(cell)]
    assert widths(head)[0] == pytest.approx(0.3 * widths(up)[0], abs=0.1)
    for cell in (up, head):
        [line] = cell.iter("line")
        assert float(line.attrib["x1"]) == pytest.approx(widths(head)[0], abs=0.1)


def test_eight_bits_do_not_make_the_ternary_bars_short():
    """They are off the scale, full and in another colour, with their number."""
    ternary, integer = figure(page(), "Signal to noise of the weights").iter("td")

    assert widths(ternary)[0] > 0.9 * WIDTH
    assert widths(integer) == [WIDTH]
    assert integer.findtext("small") == "43.8 dB · 8 bit"
    assert len({cell.findall(".//rect")[1].attrib["fill"] for cell in (ternary, integer)}) == 2


def test_a_histogram_has_the_borders_of_its_codes():
    """At their place between the smallest and the largest weight."""
    [cell] = figure(page(), "Latent weights").iter("td")

    assert [float(line.attrib["x1"]) for line in cell.iter("line")] == pytest.approx(
        [WIDTH / 4, 3 * WIDTH / 4], abs=0.1
    )
    heights = [float(rect.attrib["height"]) for rect in cell.iter("rect")][1:]
    assert heights[1] == pytest.approx(heights[0] / 3, abs=0.1)
    assert cell.findtext("small") == "-1 to 1"


def test_what_nothing_is_known_of_has_no_figure():
    """A dense form has no codes and no scales."""
    text = page(readings={"head.input": READINGS["head.input"]}, weights={})

    assert "Signal to noise of the activations" in text
    for title in ("Occupancy", "Scales", "Latent", "PACT"):
        assert title not in text


def test_alarms_stand_above_the_figures():
    """In the words that a run has for them."""
    text = page(alarms=["quant/zero_ratio is 0.95"])

    assert text.index("zero_ratio is 0.95") < text.index("<h2>")


@pytest.mark.parametrize(
    ("step", "overrides", "has_codes"),
    [
        (60, {}, True),
        (0, {}, False),
        (60, {"weight_mode": "paper"}, True),
        (60, {"weight_mode": "absmean", "embed_norm": "qdyt"}, True),
        (60, {"weight_mode": "float", "activation_mode": "float", "mixers": "none"}, False),
        (60, {"block_norm": "layernorm"}, True),
    ],
)
def test_every_stage_and_form_of_a_model_has_a_page(step, overrides, has_codes):
    """Each with the figures that there is something to draw in, all of them well-formed."""
    model = make_model(**overrides)
    model.apply_schedule(step, 100)
    Diagnostics(model).observe(True)
    model(*make_batch())

    text = make_page(model, "Quantization", [])

    tables = re.findall(r"<table>.*?</table>", text, re.DOTALL)
    assert tables and all(ElementTree.fromstring(table) is not None for table in tables)
    assert "nan" not in text
    assert ("Occupancy" in text) == has_codes
    is_skewed = overrides.get("weight_mode") == "paper"
    assert ("the shares of +1 and -1 differ" in text) == is_skewed
