"""The page that asks: the images worth a look, as pictures, with keys for the verdicts; one HTML file, offline."""

from __future__ import annotations

import json
from pathlib import Path

from markupsafe import Markup

from pipeline.audit.review import earlier_verdicts, images_to_review
from pipeline.files import write_text
from pipeline.pages.cards import Limits, asked_cards
from pipeline.pages.page import environment, name_of, rendered
from pipeline.runfolder import RunFolder
from pipeline.wording import shell_word


def write_review_page(run: RunFolder, limits: Limits | None = None, *, dataset: str | None = None) -> Path:
    """Write the run's review.html and return where it lies; the file it saves holds earlier verdicts, too.

    `dataset` says what was audited where `run.json` is not there yet.

    Raises RunFolderError where a file of the run is missing, or the page cannot be written.
    """
    cards = list(asked_cards(run, images_to_review(run), limits or Limits()))
    facts = {
        "run": str(run.path.resolve()),
        "asked": [[card.image_id, card.label_name] for card in cards],
        "said": [[image_id, said.label_name, said.word] for image_id, said in earlier_verdicts(run).items()],
    }
    text = (
        environment()
        .get_template("review.html")
        .render(
            name=name_of(run, dataset),
            run=shell_word(str(run.path)),
            cards=[rendered(card, asked=len(cards)) for card in cards],
            images=Markup(json.dumps(facts).replace("<", "\\u003c")),  # no name may end the element
        )
    )
    write_text(text, run.review_page)
    return run.review_page
