"""Moving and mirroring images, and telling from a network's answers whether mirroring keeps the label."""

import numpy as np

from pipeline.judging.augment import mirroring_is_harmless, vary


def moved(image, down, right, mirror):
    """Slow oracle: the image moved, its border repeated, then perhaps mirrored."""
    size = len(image)
    result = np.empty_like(image)
    for row in range(size):
        for column in range(size):
            source = [min(max(row + down, 0), size - 1), min(max(column + right, 0), size - 1)]
            result[row, column] = image[source[0], source[1]]
    return result[:, ::-1] if mirror else result


def seen_variants(mirror):
    """For many varied copies of one image: which (down, right, mirrored) each turns out to be."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    known = {
        moved(image, down, right, turned).tobytes(): (down, right, turned)
        for down in range(-2, 3)
        for right in range(-2, 3)
        for turned in (False, True)
    }
    varied = vary(np.repeat(image[None], 600, axis=0), np.random.default_rng(1), mirror=mirror)
    assert varied.dtype == np.uint8
    return [known[one.tobytes()] for one in varied]


def test_images_move_by_up_to_an_eighth_and_are_not_mirrored():
    seen = seen_variants(mirror=False)
    assert {(down, right) for down, right, _ in seen} == {(d, r) for d in range(-2, 3) for r in range(-2, 3)}
    assert not any(turned for *_, turned in seen)


def test_every_second_image_is_mirrored():
    assert 0.4 < np.mean([turned for *_, turned in seen_variants(mirror=True)]) < 0.6


def test_each_image_keeps_its_place_in_the_batch():
    flat = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None], (50, 8, 8, 3))
    assert (vary(flat, np.random.default_rng(0), mirror=True) == flat).all()


def answers(labels, share_right, seed, classes=10):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share_right, labels, rng.integers(0, classes, len(labels)))


LABELS = np.arange(200) % 10


def test_photographs_may_be_mirrored():
    accepted = [
        mirroring_is_harmless(LABELS, answers(LABELS, 0.5, seed), answers(LABELS, 0.5, seed + 100))
        for seed in range(40)
    ]
    assert np.mean(accepted) > 0.8


def test_digits_may_not():
    assert not mirroring_is_harmless(LABELS, answers(LABELS, 0.9, 0), answers(LABELS, 0.3, 1))


def test_two_classes_that_are_mirror_images_are_enough_to_refuse():
    """Twenty lost images are nothing among five hundred that come and go, but all that two classes had."""
    labels = np.concatenate([np.repeat([3, 4], 10), np.repeat([0, 1, 2], 500)])
    plain, mirrored = labels.copy(), labels.copy()
    plain[20::6], mirrored[21::6] = 5, 5
    assert mirroring_is_harmless(labels, plain, mirrored)
    mirrored[:10], mirrored[10:20] = 4, 3
    assert not mirroring_is_harmless(labels, plain, mirrored)


def test_a_network_that_knows_nothing_cannot_tell():
    always = np.zeros_like(LABELS)
    assert not mirroring_is_harmless(LABELS, always, always)
    assert not mirroring_is_harmless(LABELS[:3], LABELS[:3], LABELS[:3])
