import pytest
import torch

from crbg.data.corruptions import CORRUPTIONS, corrupted


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_images_are_reproducible_and_differ_from_the_clean_ones(name, digits):
    part = digits.test
    once, again = corrupted(part, name), corrupted(part, name)
    assert once.x.dtype == torch.uint8
    assert torch.equal(once.x, again.x)
    assert once.x.shape == part.x.shape
    assert torch.equal(once.y, part.y)
    changed = (once.x != part.x).flatten(1).any(1).double().mean()
    assert changed > (0.3 if name == "occlusion" else 0.99), "a square may cover only black pixels"
    small = corrupted(part.take(slice(20)), name)
    assert torch.equal(small.x, once.x[:20]), "an image does not depend on the images behind it"


def test_each_corruption_does_what_it_says(digits):
    x = digits.test.pixels(slice(None)).float() / 255

    def change(name):
        return corrupted(digits.test, name).x.float() / 255

    inner = (x > 0.45) & (x < 0.55)
    assert float((change("noise") - x)[inner].std()) == pytest.approx(0.2, rel=0.1)
    assert change("blur").std() < 0.9 * x.std()
    assert float(change("contrast").std()) == pytest.approx(float(0.3 * x.std()), rel=0.05)
    covered = change("occlusion")
    edge = round(x.shape[-1] * 2 / 7)
    lost = ((covered != x).flatten(1)).sum(1)
    assert lost.max() <= edge**2
    assert (covered <= x).all()


def test_a_shift_moves_each_image_by_three_pixels_in_one_of_four_directions(mnist):
    part = mnist.test.take(slice(200))
    moved, x = corrupted(part, "shift").x, part.x
    four = [torch.zeros_like(x) for _ in range(4)]
    four[0][..., 3:, :], four[1][..., :-3, :] = x[..., :-3, :], x[..., 3:, :]
    four[2][..., :, 3:], four[3][..., :, :-3] = x[..., :, :-3], x[..., :, 3:]
    same = torch.stack([(moved == f).flatten(1).all(1) for f in four])
    assert (same.sum(0) >= 1).all()
    assert (same.double().mean(1) > 0.1).all(), "all directions occur"
