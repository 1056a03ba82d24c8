"""Real pictures that lie on a machine with Pillow, matplotlib and scikit-learn."""

import os
import string
import unicodedata
from pathlib import Path

import numpy as np

from keras_learned_lr.benchmark.quality.task import NotOnThisMachine

# Debian's package `fonts-noto-color-emoji`, and where users put fonts of their own.
EMOJI_FONTS = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    / "fonts"
    / "NotoColorEmoji.ttf",
)
# The one size in which the font holds its bitmaps, and their size.
EMOJI_SIZE, EMOJI_SHAPE = 109, (136, 128)
# Fonts of matplotlib in which every letter and digit looks like one.
TEXT_FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10")


def emoji(side: int) -> np.ndarray:
    """Returns the emoji of one code point, float32 `[n, side, side, 3]` in [0, 1].

    Raises:
        NotOnThisMachine: If Pillow or the font is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise NotOnThisMachine("needs Pillow: pip install pillow") from error
    for path in EMOJI_FONTS:
        if path.is_file():
            font = ImageFont.truetype(path, EMOJI_SIZE)
            break
    else:
        raise NotOnThisMachine(
            "needs Noto Color Emoji: apt install fonts-noto-color-emoji"
        )
    pictures = []
    for code in (*range(0x2600, 0x27C0), *range(0x1F300, 0x1FB00)):
        if unicodedata.category(chr(code)) != "So":
            continue
        canvas = Image.new("RGB", EMOJI_SHAPE, "white")
        draw = ImageDraw.Draw(canvas)
        draw.text((0, 0), chr(code), font=font, embedded_color=True)
        picture = np.asarray(canvas.resize((side, side)), "float32") / 255.0
        # What the font does not draw stays white.
        if picture.std() > 0.05:
            pictures.append(picture)
    return np.stack(pictures)


def letters(side: int, copies: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns letters and digits in the fonts of matplotlib, turned and shifted.

    Args:
        side: Pixels of a side.
        copies: How often each character is drawn in each font.
        seed: Seeds how they are turned and shifted.

    Returns:
        Pictures, float32 `[n, side, side, 1]` in [0, 1], and which of the 62
        characters each shows, int64 `[n]`.

    Raises:
        NotOnThisMachine: If Pillow or matplotlib is not installed.
    """
    try:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise NotOnThisMachine(
            f"needs {error.name}: pip install pillow matplotlib"
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(p for p in folder.glob("*.ttf") if p.stem.startswith(TEXT_FONTS))
    random = np.random.default_rng(seed)
    pictures, labels = [], []
    for path in files:
        font = ImageFont.truetype(path, int(0.75 * side))
        for label, character in enumerate(string.ascii_letters + string.digits):
            for _ in range(copies):
                canvas = Image.new("L", (side, side))
                middle = tuple(side / 2 + random.uniform(-0.1, 0.1, 2) * side)
                draw = ImageDraw.Draw(canvas)
                draw.text(middle, character, 255, font, anchor="mm")
                turned = canvas.rotate(
                    random.normal(scale=12.0), Image.Resampling.BILINEAR
                )
                pictures.append(np.asarray(turned, "float32") / 255.0)
                labels.append(label)
    return np.stack(pictures)[..., np.newaxis], np.array(labels)


def photograph_patches(side: int, count: int, seed: int = 0) -> np.ndarray:
    """Returns grey patches of scikit-learn's two photographs.

    Args:
        side: Pixels of a side.
        count: How many patches.
        seed: Seeds where they are cut.

    Returns:
        float32 `[count, side, side, 1]` in [0, 1].

    Raises:
        NotOnThisMachine: If scikit-learn or Pillow is not installed.
    """
    try:
        from sklearn.datasets import load_sample_images

        photographs = [p.mean(axis=-1) / 255.0 for p in load_sample_images().images]
    except ImportError as error:
        raise NotOnThisMachine(
            "needs scikit-learn and Pillow: pip install scikit-learn pillow"
        ) from error
    random = np.random.default_rng(seed)
    patches = []
    for index in range(count):
        grey = photographs[index % len(photographs)]
        top, left = (random.integers(0, size - side) for size in grey.shape)
        patches.append(grey[top : top + side, left : left + side])
    return np.stack(patches)[..., np.newaxis].astype("float32")
