"""Plots of gradients, cells, gates and predictions."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import jaxlstm as jl
from jaxlstm import plots
from jaxlstm.cells.base import Gates, LSTMState
from jaxlstm.cells.emit import Trace
from jaxlstm.plots import canvas
from plotting import drawn, new_axes, no_window, trace, words  # noqa: F401  (fixtures)


def lines(ax):
    """Return the lines by label."""
    return {line.get_label(): line for line in ax.lines}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def luminance(colour):
    """Return the brightness in greyscale, from 0 to 1."""
    return float(np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722]))


# -- colours -------------------------------------------------------------------


def test_neighbouring_curves_differ_in_brightness_and_style():
    styles = [canvas.curve_style(n) for n in range(25)]
    assert len(set(styles)) == 25
    for (one, style), (other, another) in itertools.pairwise(styles):
        assert abs(luminance(one) - luminance(other)) > 0.07
        assert style != another


# -- gradients through time ----------------------------------------------------


def test_gradient_flow_has_lags_and_a_logarithmic_axis(ax):
    flows = {"RNN": [1e-9, 1e-3, 1.0], "LSTM": np.full((4, 3), 0.5)}
    plots.gradient_flow(flows, ax=ax)
    assert drawn(ax).get_yscale() == "log"
    np.testing.assert_array_equal(lines(ax)["RNN"].get_xdata(), [2, 1, 0])
    np.testing.assert_array_equal(lines(ax)["RNN"].get_ydata(), [1e-9, 1e-3, 1.0])
    assert legend(ax) == ["RNN", "LSTM"]
    assert "median of 4" in ax.get_legend().get_title().get_text()
    assert ax.get_ylabel() == "gradient norm ‖dL/dh‖"


def test_rows_of_a_gradient_flow_are_drawn_as_seeds(ax):
    norm = LSTMState(h=np.full((5, 3), 2.0), c=np.arange(15.0).reshape(5, 3) + 1)
    flow = SimpleNamespace(norm=norm)
    plots.gradient_flow({"one": flow}, of="c", against="step", ax=ax)
    middle = np.median(norm.c, axis=1)
    np.testing.assert_allclose(lines(drawn(ax))["one"].get_ydata(), middle)
    np.testing.assert_array_equal(lines(ax)["one"].get_xdata(), range(5))
    assert len(ax.collections) == 1


def test_the_result_of_compare_can_be_drawn(ax):
    cells = {"LSTM": jl.lstm(), "RNN": jl.simple_rnn()}
    pairs = {
        name: (cell, cell.init(jax.random.key(0), 2, 3)) for name, cell in cells.items()
    }
    flows = jl.diagnostics.compare(
        pairs, jnp.ones((6, 2)), loss=lambda state, hs: hs[-1].sum()
    )
    plots.gradient_flow(flows, ax=ax)
    for name, flow in flows.items():
        np.testing.assert_allclose(lines(ax)[name].get_ydata(), flow.norm.h)
    with pytest.raises(ValueError, match=r"of: got 'c', expected a state of flows"):
        plots.gradient_flow(flows, of="c")


def test_the_line_is_the_median_and_the_band_the_middle_half(ax):
    seeds = np.arange(1.0, 6.0)[:, None] * np.ones(3)
    plots.gradient_flow({"a": seeds}, ax=ax)
    (band,) = drawn(ax).collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (2.0, 4.0)
    np.testing.assert_array_equal(lines(ax)["a"].get_ydata(), [3.0] * 3)


def test_a_curve_ends_where_it_becomes_zero(ax):
    plots.gradient_flow({"a": [0.0, 0.0, 1e-3, 1.0]}, ax=ax)
    shown = lines(drawn(ax))["a"].get_ydata()
    np.testing.assert_array_equal(shown, [np.nan, np.nan, 1e-3, 1.0])
    assert ax.get_ylim()[0] > 1e-5


def test_the_smallest_and_largest_floats_can_be_drawn(ax):
    drawn(plots.gradient_flow({"a": [5e-324, 1.0, 1e300]}, ax=ax))
    assert np.isfinite(ax.get_ylim()).all()


@pytest.mark.parametrize(
    ("value", "mark"),
    [(0.0, "exactly 0"), (np.inf, "infinite"), (np.nan, "NaN")],
)
def test_values_that_a_logarithmic_axis_cannot_show_are_marked(ax, value, mark):
    plots.gradient_flow({"a": [1.0, value, 0.1], "b": [1.0, 1.0, 1.0]}, ax=ax)
    assert mark in legend(drawn(ax))
    marks = [line for line in ax.lines if line.get_transform() != ax.transData]
    assert [list(line.get_xdata()) for line in marks if len(line.get_xdata())] == [[1]]


def test_a_curve_of_zeros_can_be_drawn(ax):
    assert legend(drawn(plots.gradient_flow({"a": np.zeros(4)}, ax=ax))) == [
        "a",
        "exactly 0",
    ]


def test_the_carousel_shows_the_product_and_the_absolute_derivative(ax):
    product = np.array([[[0.25, 0.1]], [[0.5, 0.2]], [[1.0, 1.0]]])
    found = SimpleNamespace(product=product, derivative=-2 * product)
    plots.carousel(found, unit=0, ax=ax)
    curves = lines(drawn(ax))
    np.testing.assert_array_equal(
        curves["product of forget gates"].get_ydata(), [0.25, 0.5, 1.0]
    )
    np.testing.assert_array_equal(
        curves["exact |dc_T / dc_t|"].get_ydata(), [0.5, 1.0, 2.0]
    )
    assert ax.get_title() == "unit 0"


def test_a_spectrum_counts_eigenvalues_outside_the_circle(ax):
    plots.spectrum(np.array([[2j, 0.5], [-0.5, 0.5j]]), ax=ax)
    assert "largest modulus 2\n25 % outside the unit circle" in words(drawn(ax))
    assert ax.get_aspect() == 1


def test_lyapunov_exponents_are_ranked_and_lost_directions_marked(ax):
    plots.lyapunov_exponents({"RNN": [[0.1, -0.5, -np.inf]] * 2}, ax=ax)
    assert "minus infinity" in legend(drawn(ax))
    np.testing.assert_array_equal(lines(ax)["RNN"].get_xdata(), [1, 2, 3])


def test_loss_bands_on_a_logarithmic_axis_mark_a_loss_of_zero(ax):
    plots.loss_bands({"LSTM": [1.0, 0.01, 0.0]}, logarithmic=True, ax=ax)
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "log"
    assert 0 < low < 0.01
    assert 1 < high < 2
    assert "exactly 0" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_loss_bands_name_and_mark_seeds_that_diverged(ax):
    losses = np.linspace(3, 1, 5) + np.arange(4)[:, None] / 10
    losses[3, 3:] = np.nan
    plots.loss_bands({"LSTM": losses}, ax=ax)
    assert legend(drawn(ax)) == ["LSTM (1 of 4 diverged)", "NaN"]
    line = lines(ax)["LSTM (1 of 4 diverged)"]
    assert line.get_ydata()[0] == pytest.approx(3.15)
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]


# -- gates and cells -----------------------------------------------------------


def test_a_signal_is_drawn_above_the_gate(ax):
    signal, gate = np.sin(np.arange(20.0)), np.random.default_rng(0).random((20, 6))
    top = plots.signal_heatmap(signal, gate, "input gate i", label="x (volt)", ax=ax)
    panels = drawn(top).figure.axes
    np.testing.assert_array_equal(top.lines[0].get_ydata(), signal)
    assert top.get_ylabel() == "x (volt)"
    assert panels[1].images[0].get_array().shape == (6, 20)
    assert panels[2].get_ylabel() == "input gate i (0: closed, 1: open)"
    assert top.get_xlim() == panels[1].get_xlim()


def test_saturation_has_a_panel_per_gate_with_its_mean(ax):
    low = Gates(*(np.full(4, share) for share in (0.1, 0.2, 0.3, 0.4)))
    high = Gates(*(np.array([0.0, 0.5, 0.25, 0.25]) for _ in range(4)))
    top = plots.saturation((low, high), ax=ax)
    panels = drawn(top).figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == [
        "i: closed 10 %, open 25 %",
        "f: closed 20 %, open 25 %",
        "g: at -1 30 %, at 1 25 %",
        "o: closed 40 %, open 25 %",
    ]
    assert panels[3].get_xlabel() == "unit number (sorted by how often f is open)"
    assert [panel.get_ylabel() for panel in panels].count("fraction of steps") == 1
    assert legend(top) == ["closed (or -1)", "open (or 1)"]
    np.testing.assert_array_equal(panels[1].patches[0].get_data().values, [0.2] * 4)
    wide = panels[1].patches[1].get_data()
    np.testing.assert_array_equal(1 - wide.baseline, [0.5, 0.25, 0.25, 0.0])


def test_the_unrolled_cell_shows_the_values_of_the_trace(ax):
    seen = trace(5, 3)
    plots.unrolled_cell("hello", seen, 2, start=1, steps=3, ax=ax)
    shown = words(drawn(ax))
    for t in (1, 2, 3):
        for name in "ifo":
            assert f"{name}\n{getattr(seen.gates, name)[t, 2]:.2f}" in shown
        assert f"g\n{seen.gates.g[t, 2]:+.2f}" in shown
        assert f"$c_{{{t}}}$\n{seen.state.c[t, 2]:+.2f}" in shown
        assert f"$h_{{{t}}}$\n{seen.state.h[t, 2]:+.2f}" in shown
    assert f"$c_{{0}}$\n{seen.state.c[0, 2]:+.2f}" in shown
    kept = seen.gates.f[1, 2] * seen.state.c[0, 2]
    assert f"{kept:+.2f}" in shown
    assert ax.get_title() == "unit 2, steps 1 to 3"


def test_the_line_of_c_has_the_thickness_of_its_value(ax):
    one = np.ones((2, 1))
    gates = Gates(i=0 * one, f=np.array([[1.0], [0.5]]), g=0 * one, o=one)
    seen = Trace(LSTMState(one, np.array([[4.0], [2.0]])), gates)
    plots.unrolled_cell([0.5, 1.5], seen, 0, steps=2, initial=(0.0, 4.0), ax=ax)
    heights = [
        patch.get_height()
        for patch in drawn(ax).patches
        if hasattr(patch, "get_height") and patch.get_zorder() == 2
    ]
    thick, thin = 0.03 + 0.25, 0.03 + 0.125
    np.testing.assert_allclose(heights, [thick] * 4 + [thin] * 3)


def test_a_negative_c_is_a_hollow_line_and_zero_has_no_sign(ax):
    c = np.array([[1.0], [-1.0]])
    gates = Gates(*(np.full((2, 1), share) for share in (1.0, 0.001, -0.0, 0.5)))
    seen = Trace(LSTMState(-0.0 * c, c), gates)
    plots.unrolled_cell("ab", seen, 0, start=1, steps=1, ax=ax)
    fills = [to_rgb(bar.get_facecolor()) for bar in ax.patches if bar.get_zorder() == 2]
    white = [fill == (1.0, 1.0, 1.0) for fill in fills]
    assert white == [False, False, True, True]
    assert "-0.00" not in words(drawn(ax))


def test_gates_of_a_diagram_are_filled_up_to_their_value(ax):
    seen = trace(3, 2)
    plots.unrolled_cell("abc", seen, 1, start=2, steps=1, ax=ax)
    filled = [bar.get_height() for bar in drawn(ax).patches if bar.get_alpha()]
    values = [getattr(seen.gates, name)[2, 1] for name in "ifgo"]
    side = next(bar.get_height() for bar in ax.patches if not bar.get_fill())
    expected = {
        side * (v / 2 if n == "g" else v) for n, v in zip("ifgo", values, strict=True)
    }
    np.testing.assert_allclose(sorted(filled), sorted(expected))


def test_the_font_of_a_diagram_scales_with_the_figure():
    sizes = []
    for inches in (4, 12):
        ax = Figure(figsize=(inches, inches / 3)).add_subplot()
        drawn(plots.unrolled_cell("abcd", trace(4, 1), 0, ax=ax))
        sizes.append(ax.texts[0].get_fontsize())
    assert sizes[0] < sizes[1]


# -- scores --------------------------------------------------------------------


def test_a_confusion_matrix_is_shaded_by_the_true_class(ax):
    counts = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    plots.confusion_matrix(counts, ["cat", "dog", "$x$"], ax=ax)
    shown = np.asarray(drawn(ax).images[0].get_array())
    np.testing.assert_allclose(shown, [[0.8, 0.2, 0], [0.1, 0.9, 0], [0, 0, 0]])
    assert ax.get_title() == "accuracy 85 % (20 examples)"
    assert len(ax.lines) == 1  # the class without examples is crossed out
    assert {"8", "2", "1", "9"} <= set(words(ax).split())


def test_the_legend_of_a_fan_has_the_coverage_of_its_bands(ax):
    levels = {0.05: [0.0, 0, 0, 0], 0.25: [1.0] * 4, 0.5: [2.0] * 4}
    levels |= {0.75: [3.0] * 4, 0.95: [4.0] * 4}
    truth = [2.0, 0.5, 9.0, np.nan]
    plots.forecast_fan([1.0, 2.0], levels, truth=truth, label="load (kW)", ax=ax)
    assert legend(drawn(ax))[-2:] == [
        "90 % band, contains 66.7 %",
        "50 % band, contains 33.3 %",
    ]
    np.testing.assert_array_equal(lines(ax)["history"].get_xdata(), [-1, 0])
    shades = [luminance(band.get_facecolor()[0][:3]) for band in ax.collections]
    assert shades[0] - shades[1] > 0.1  # the inner band is darker, in grey too


def test_saturation_without_a_candidate_has_no_minus_one(ax):
    plots.saturation(({"f": [0.5]}, {"f": [0.5]}), ax=ax)
    assert legend(drawn(ax)) == ["closed", "open"]
    assert [tick for tick in ax.get_xticks() if abs(tick) < 0.5] == [0]


def test_the_legend_of_many_bands_is_beside_the_axes(ax):
    drawn(plots.loss_bands({str(n): [2.0, 1.0] for n in range(8)}, ax=ax))
    assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1


def test_classes_can_be_numbers(ax):
    plots.confusion_matrix([[8, 2], [1, 9]], [0, 1], ax=ax)
    assert [label.get_text() for label in drawn(ax).get_xticklabels()] == ["0", "1"]


def test_a_fan_of_one_step_is_visible(ax):
    plots.forecast_fan([1.0], {0.1: [0.5], 0.5: [1.0], 0.9: [2.0]}, ax=ax)
    assert np.ptp(lines(drawn(ax))["median forecast"].get_xdata()) > 0.1
    assert lines(ax)["history"].get_marker() == "."
    ends = ax.collections[0].get_paths()[0].get_extents()
    assert ends.width > 0.1
    assert (ends.y0, ends.y1) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("times", "label"),
    [
        (np.datetime64("2026-03-01") + np.arange(3), "2026-03-02"),
        (np.datetime64("2026-03-01T22") + np.arange(3), "2026-03-01\n23:00"),
        ([1990, 1991, 1992], "1991"),
    ],
)
def test_a_fan_has_the_times_of_its_values(times, label, ax):
    plots.forecast_fan([1.0, 2.0], {0.5: [1.0]}, times=times, ax=drawn(ax))
    shown = dict(zip(ax.get_xticks(), ax.get_xticklabels(), strict=True))
    drawn(ax)
    assert shown[0].get_text() == label
    outside = [text.get_text() for x, text in shown.items() if not -1 <= x <= 1]
    assert not any(outside)


def test_a_step_without_a_band_does_not_count(ax):
    levels = {0.1: [0.0, np.nan, 0.0], 0.9: [1.0, 1.0, 1.0]}
    plots.forecast_fan([1.0], levels, truth=[0.5, 0.5, 2.0], ax=ax)
    assert legend(drawn(ax))[-1] == "80 % band, contains 50 %"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.gradient_flow({}),
            "gradient_flow: flows: got {}, expected a dict",
        ),
        (lambda: plots.gradient_flow({"a": [-1.0]}), "got -1, expected norms >= 0"),
        (lambda: plots.gradient_flow({"a": np.ones((2, 2, 2))}), "got shape"),
        (
            lambda: plots.gradient_flow({"a": [1.0]}, of="z"),
            'of: got \'z\', expected "h" or "c"',
        ),
        (
            lambda: plots.gradient_flow({"a": [1.0]}, within=(0.9, 0.1)),
            "low < high",
        ),
        (lambda: plots.spectrum([]), "at least one"),
        (lambda: plots.spectrum([np.nan]), "1 values not finite"),
        (
            lambda: plots.loss_bands({"a": [1.0]}, steps=[1, 2]),
            r"expected \[1\], one step",
        ),
        (lambda: plots.signal_heatmap([1.0], np.ones((2, 2)), "i"), "1 steps"),
        (
            lambda: plots.signal_heatmap(np.ones((2, 9)), np.ones((2, 2)), "i"),
            "from 1 to 5",
        ),
        (
            lambda: plots.unrolled_cell("ab", trace(2, 1), 1),
            "unit: got 1, expected 0 to 0",
        ),
        (
            lambda: plots.unrolled_cell("ab", trace(2, 1), 0),
            "start, steps: got 0 and 3, expected .* 0 to 1",
        ),
        (
            lambda: plots.confusion_matrix([[1]], ["a", "b"]),
            "a row and a column for each of the labels",
        ),
        (lambda: plots.confusion_matrix([[-1]], ["a"]), "counts >= 0"),
        (lambda: plots.confusion_matrix([], []), "labels: got none"),
        (
            lambda: plots.unrolled_cell([*np.ones((3, 2))], trace(3, 2), 0),
            r"symbols\[0\]: got array.* expected text or a number",
        ),
        (lambda: plots.saturation(({}, {})), "two records"),
        (lambda: plots.saturation(trace(3, 2).gates), "two records"),
        (lambda: plots.saturation(({"f": [1.0]}, {"i": [0.0]})), "of the same gates"),
        (lambda: plots.saturation(({"f": []}, {"f": []})), "at least one unit"),
        (lambda: plots.saturation(({"f": [0.0] * 4}, {"f": [1.0] * 3})), "the same"),
        (
            lambda: plots.forecast_fan([1.0], {0.1: [0, 2], 0.9: [1, 1]}),
            r"0\.1\]: got 2 at step 2, expected at most the 1 of quantiles\[0\.9\]",
        ),
        (lambda: plots.forecast_fan([1.0], {}), "quantiles: got {}"),
        (
            lambda: plots.forecast_fan([1.0], {0.5: [1.0]}, times=[1]),
            r"times: got shape \[1\], expected \[2\]: 1 of the history and 1",
        ),
        (lambda: plots.forecast_fan([1.0], {0.1: [1.0]}), "also 0.9"),
        (lambda: plots.forecast_fan([], {0.5: [1.0]}), "history: got shape"),
    ],
)
def test_wrong_arguments_raise(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("against", ["step", "lag"])
def test_padding_is_no_vanished_gradient(against, ax):
    lengths, rng = np.array([6, 3, 0, 5]), np.random.default_rng(0)
    norms = rng.uniform(0.1, 1, size=(4, 6))
    padded = np.where(np.arange(6) < lengths[:, None], norms, 0)
    ax = plots.gradient_flow({"LSTM": padded}, against=against, lengths=lengths, ax=ax)
    drawn_at = dict(zip(*ax.lines[0].get_data(), strict=True))
    for x in range(6):
        at = lengths - 1 - x if against == "lag" else np.full(4, x)
        rows = [norms[k, t] for k, t in enumerate(at) if 0 <= t < lengths[k]]
        np.testing.assert_allclose(drawn_at[x], np.median(rows))
    assert "exactly 0" not in words(drawn(ax))
    with pytest.raises(ValueError, match="expected 4 integers from 0 to 6"):
        plots.gradient_flow({"LSTM": padded}, lengths=[6, 3, 7, 1], ax=ax)
