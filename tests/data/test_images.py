import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_hub.data.images import EncodedImage, UnreadableImageError, decode_image


def encode(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return {"bytes": file.getvalue(), "path": None}


def pixels_of(image):
    decoded = decode_image(image)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(file_format):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = pixels_of(encode(Image.fromarray(ramp), file_format))
    assert np.abs(pixels[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_32_bit_integers_are_read_as_16_bits():
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.int32))
    assert image.mode == "I"
    assert pixels_of(encode(image, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_pixels(white):
    image = Image.fromarray(np.array([[0, white / 2, white, np.nan]], dtype=np.float32))
    assert pixels_of(encode(image, "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0]


def test_transparency_becomes_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    expected = [[[255, 0, 0], [255, 255, 255]]]
    assert pixels_of(encode(rgba)).tolist() == expected

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert pixels_of(encode(palette, transparency=1)).tolist() == expected
    assert pixels_of(encode(palette)).tolist() == [[[255, 0, 0], [0, 0, 0]]]

    gray_alpha = Image.new("LA", (1, 1), (0, 0))
    assert pixels_of(encode(gray_alpha)).tolist() == [[[255, 255, 255]]]


def test_other_modes():
    assert pixels_of(encode(Image.new("L", (3, 2), 77)))[1, 2].tolist() == [77, 77, 77]
    assert pixels_of(encode(Image.new("1", (3, 2), 1)))[1, 2].tolist() == [255, 255, 255]
    cmyk = pixels_of(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert cmyk[4, 4, 0] > 240 and cmyk[4, 4, 1] < 15
    assert pixels_of(Image.new("L", (3, 2), 77))[1, 2].tolist() == [77, 77, 77]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_orientation_is_applied(tmp_path, suffix):
    image = Image.new("RGB", (40, 20))
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to see it upright
    image.save(tmp_path / f"turned.{suffix}", exif=exif, quality=95)
    file = {"bytes": None, "path": str(tmp_path / f"turned.{suffix}")}
    encoded = EncodedImage(file)
    assert (encoded.height, encoded.width) == (40, 20)
    assert encoded.pixels(0.4).shape[:2] == ((20, 10) if suffix == "jpg" else (40, 20))
    pixels = pixels_of(file)
    assert pixels.shape == (40, 20, 3)
    assert pixels[5, 10, 0] > 200 and pixels[35, 10, 0] < 50


@pytest.mark.parametrize(("resolution", "size"), [(1.5, (100, 68)), (0.51, (100, 68)), (0.5, (50, 34)), (0.1, (13, 9))])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size(resolution, size):
    encoded = EncodedImage(encode(Image.new("RGB", (100, 68), "red"), "JPEG"))
    assert (encoded.width, encoded.height) == (100, 68)
    assert encoded.pixels(resolution).shape[1::-1] == size
    image = Image.new("RGB", (100, 68))
    for other in (image, encode(image)):
        assert EncodedImage(other).pixels(resolution).shape == (68, 100, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_pixels_that_pillow_reads(mode, orientation):
    noise = Image.effect_noise((48, 32), 60)
    image = Image.merge(mode, [noise.rotate(90 * i) for i in range(len(mode))])
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(image, "JPEG", exif=exif)
    for resolution in (1.0, 0.5, 0.2):
        opened = Image.open(io.BytesIO(encoded["bytes"]))
        opened.draft(None, (round(48 * resolution), round(32 * resolution)))
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert np.array_equal(EncodedImage(encoded).pixels(resolution), expected)


def test_what_follows_a_jpeg_is_no_part_of_it():
    encoded = encode(Image.new("RGB", (16, 16), "red"), "JPEG")
    longer = {"bytes": encoded["bytes"] + bytes(100), "path": None}
    assert np.array_equal(EncodedImage(longer).pixels(), EncodedImage(encoded).pixels())


def test_a_file_on_the_hub(monkeypatch):
    files = {"hf://datasets/me/cats/1.png": encode(Image.new("L", (3, 2), 77))["bytes"]}
    monkeypatch.setattr("fsspec.open", lambda address: io.BytesIO(files[address]))
    image = decode_image({"bytes": None, "path": "hf://datasets/me/cats/1.png"}, remote=True)
    assert image.getpixel((1, 1)) == (77, 77, 77)
    with pytest.raises(UnreadableImageError, match=r"hf://datasets/me/cats/2\.png"):
        decode_image({"bytes": None, "path": "hf://datasets/me/cats/2.png"}, remote=True)


def test_unreadable_files(tmp_path):
    whole = encode(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")["bytes"]
    contents = {
        "truncated.jpg": whole[:600],
        "empty.jpg": b"",
        "text.jpg": b"no image at all",
        "broken.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing.jpg"):
        with pytest.raises(UnreadableImageError, match=name) as caught:
            decode_image({"bytes": None, "path": str(tmp_path / name)})
        assert caught.value.name == str(tmp_path / name)
    for content in contents.values():
        with pytest.raises(UnreadableImageError, match=r"^row 7: "):
            decode_image({"bytes": content, "path": None}, "row 7")
    with pytest.raises(UnreadableImageError, match="row 8"):
        decode_image(None, "row 8")


def test_a_decompression_bomb_is_unreadable(monkeypatch):
    image = encode(Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="DecompressionBomb"):
        decode_image(image)
