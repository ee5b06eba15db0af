"""The picture of the page in the docs: ``python -m tests.screenshot`` runs two settings on it, and looks at what is shown."""

import io
from pathlib import Path

from PIL import Image

from taylorseer_fx.app.runs import Workbench
from tests.browsers import launched, press, set_slider, visited

PICTURE = Path(__file__).parents[1] / "docs" / "app.png"
NUM_COLOURS = 64  # a quarter of the bytes, and the same for the eye


def main() -> None:
    """As the page opens, but for setting B: the paper's schedule of ten full steps beside ten that ``speedup=`` places."""
    with launched() as browser, visited(browser, Workbench()) as page:
        page.set_default_timeout(600_000)
        page.get_by_role("tab", name="Setting B").click()
        page.get_by_label("Compare A with B").check()
        set_slider(page, "B-interval", 6)
        press(page)
        page.get_by_role("tab", name="Setting A").click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    shot.convert("RGB").quantize(NUM_COLOURS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
