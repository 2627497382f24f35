"""What PromptChainer's models say and draw here: always the same for the same prompt.

No model is asked; a text works the prompt into a sentence, and a picture shows its colour and its words.
"""

from __future__ import annotations

import io
import textwrap

from airflow_provider_flows.emulator.models.colours import digest, get_colour

IMAGE_SIDE_PIXELS = 512
OPENINGS = (
    "You asked for this: {prompt}. Here it is, as well as an emulator can tell it.",
    "Once upon a time somebody wanted this: {prompt}. And so it was written.",
    "About '{prompt}' an emulator knows one thing for sure: that it was asked for it.",
)


def fake_text(prompt: str) -> str:
    """Return a sentence with the prompt in it."""
    return OPENINGS[digest(prompt)[0] % len(OPENINGS)].format(prompt=prompt)


def fake_image(prompt: str) -> bytes:
    """Return a PNG: the prompt's colour, a few shapes made from its hash, and its words."""
    from PIL import Image, ImageDraw, ImageFont

    colour = get_colour(prompt)
    numbers = digest("picture", prompt)
    image = Image.new(
        "RGB", (IMAGE_SIDE_PIXELS, IMAGE_SIDE_PIXELS), tuple((part + 3 * 255) // 4 for part in colour)
    )
    draw = ImageDraw.Draw(image)
    for number in range(3):
        across, down, size = (
            part * IMAGE_SIDE_PIXELS // 256 for part in numbers[3 * number : 3 * number + 3]
        )
        reach = 60 + size // 4
        shade = tuple(part * (4 - number) // 4 for part in colour)
        box = (across - reach, down - reach, across + reach, down + reach)
        (draw.ellipse if numbers[9 + number] % 2 else draw.rectangle)(box, fill=shade)
    draw.ellipse(
        (
            IMAGE_SIDE_PIXELS // 4,
            IMAGE_SIDE_PIXELS // 5,
            IMAGE_SIDE_PIXELS * 3 // 4,
            IMAGE_SIDE_PIXELS * 7 // 10,
        ),
        fill=colour,
        outline="white",
        width=4,
    )
    caption = "\n".join(textwrap.wrap(prompt, 38)[:4])
    font = ImageFont.load_default(22)
    draw.rectangle((0, IMAGE_SIDE_PIXELS - 116, IMAGE_SIDE_PIXELS, IMAGE_SIDE_PIXELS), fill="white")
    draw.multiline_text((16, IMAGE_SIDE_PIXELS - 106), caption, fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
