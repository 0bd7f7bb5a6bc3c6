import pytest
import torch
from PIL import Image

from ssl_hub.visualization import reconstruction as module
from ssl_hub.visualization.reconstruction import plot_reconstruction

RED, GREEN, BLUE = (torch.eye(3)[i].view(1, 3, 1, 1).expand(8, 3, 8, 8) for i in range(3))


def count_pixels(path, color):
    colors = Image.open(path).convert("RGB").getcolors(maxcolors=1 << 24)
    return sum(count for count, other in colors if other == color)


def test_three_rows_of_equal_size(tmp_path, caplog):
    path = tmp_path / "reconstruction.png"
    plot_reconstruction(RED, GREEN, BLUE * 1.5, path)  # what is brighter than white is clipped
    counts = [count_pixels(path, color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert min(counts) > 0.9 * max(counts)
    assert "Clipping" not in caplog.text  # matplotlib warns of pixels out of range
    assert min(counts) > 8 * 80 * 80  # an 8-pixel scan is at least ten times enlarged


def test_with_a_mask_the_visible_patches_are_the_original(tmp_path):
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:, :4] = True  # the top row of 4x4 patches of 2x2 pixels
    plot_reconstruction(RED, GREEN, BLUE, tmp_path / "plain.png")
    plot_reconstruction(RED, GREEN, BLUE, tmp_path / "pasted.png", mask)
    whole, pasted = (count_pixels(tmp_path / name, (0, 0, 255)) for name in ("plain.png", "pasted.png"))
    assert pasted == pytest.approx(whole / 4, rel=0.1)


def test_with_the_prediction(tmp_path):
    mask = torch.zeros(8, 16, dtype=torch.bool)
    plot_reconstruction(RED, GREEN, BLUE, tmp_path / "four.png", mask, with_prediction=True)
    red, green, blue = (count_pixels(tmp_path / "four.png", color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert green == blue and red == pytest.approx(2 * green, rel=0.1)  # without a masked patch the last row is red


def test_mask_of_pixels():
    mask = torch.tensor([[True, False, False, False, False, True]])
    pixels = module._mask_of_pixels(mask, torch.zeros(1, 3, 4, 6))[0, 0]
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[:2, :2] = expected[2:, 4:] = True
    assert torch.equal(pixels, expected)


def test_bad_input(tmp_path):
    path = tmp_path / "reconstruction.png"
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), expected"):
        plot_reconstruction(RED[0], RED[0], RED[0], path)
    with pytest.raises(ValueError, match="masked_image has the shape"):
        plot_reconstruction(RED, RED[:2], RED, path)
    for shape in ((8, 15), (8, 0), (7, 16), (16,)):
        with pytest.raises(ValueError, match="square patches"):
            plot_reconstruction(RED, RED, RED, path, torch.zeros(shape, dtype=torch.bool))
    assert not path.exists()
