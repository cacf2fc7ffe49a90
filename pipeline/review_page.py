"""The page that asks: the images worth a look, as pictures, with keys for the verdicts; one HTML file, offline."""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from pipeline.cards import NAME_LENGTH, Limits, asked_cards
from pipeline.files import write_text
from pipeline.findings import dataset_name
from pipeline.page import environment
from pipeline.review import earlier_verdicts, images_to_review
from pipeline.runfolder import RunFolder
from pipeline.wording import TITLES, printable, shell_word, shortened


def write_review_page(run: RunFolder, limits: Limits | None = None) -> Path:
    """Write the run's review.html and return where it lies; the file it saves holds earlier verdicts, too.

    Raises RunFolderError where a file of the run is missing, or the page cannot be written.
    """
    cards = list(asked_cards(run, images_to_review(run), limits or Limits()))
    facts = {
        "run": str(run.path.resolve()),
        "asked": [[card.image_id, card.label_name] for card in cards],
        "said": [[image_id, said.label_name, said.word] for image_id, said in earlier_verdicts(run).items()],
    }
    card = environment().get_template("card.html")
    page = environment().get_template("review.html")
    text = page.render(
        name=shortened(printable(dataset_name(run) or run.path.name), NAME_LENGTH),
        run=shell_word(str(run.path)),
        cards=[Markup(card.render(card=one, titles=TITLES, asked=len(cards))) for one in cards],  # autoescaped
        images=Markup(json.dumps(facts).replace("<", "\\u003c")),  # no name may end the element
    )
    write_text(text, run.review_page)
    return run.review_page
