"""Teacher guidance: the divergence against a loop, its gradient, and the averaged copy."""

import math

import pytest
import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.teacher import AveragedModel, guided_loss


def reference(logits: list[list[float]], teacher: list[list[float]], tau: float) -> float:
    """tau^2 * mean over positions of sum p log(p / q), in plain floats."""
    total = 0.0
    for student_row, teacher_row in zip(logits, teacher, strict=True):
        q = [math.exp(value / tau) for value in student_row]
        p = [math.exp(value / tau) for value in teacher_row]
        for a, b in zip(p, q, strict=True):
            total += a / sum(p) * math.log(a / sum(p) / (b / sum(q)))
    return tau**2 * total / len(logits)


@pytest.mark.parametrize("tau", [1.5, 2.0])
def test_the_guided_loss_adds_a_share_of_the_divergence(tau):
    """loss + weight * tau^2 * KL(teacher || student)."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 4, 5)

    found = guided_loss(torch.tensor(1.5), logits, teacher, 0.3, tau)

    expected = 1.5 + 0.3 * reference(logits.tolist(), teacher.tolist(), tau)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_draws_the_student_to_the_teacher_and_not_the_reverse():
    """weight * tau * (q - p) / M for the student, by the formula; none for the teacher."""
    torch.manual_seed(0)
    logits = torch.randn(4, 5, requires_grad=True)
    teacher = torch.randn(4, 5, requires_grad=True)

    guided_loss(torch.zeros(()), logits, teacher, 0.5, 2.0).backward()

    difference = torch.softmax(logits / 2, -1) - torch.softmax(teacher / 2, -1)
    torch.testing.assert_close(logits.grad, 0.5 * 2.0 * difference.detach() / 4)
    assert teacher.grad is None


def test_no_predicted_position_is_a_guidance_of_zero():
    """Not NaN."""
    empty = torch.empty(0, 5)

    assert guided_loss(torch.tensor(0.0), empty, empty, 0.5) == 0


def test_the_average_follows_parameters_and_takes_over_buffers():
    """After two updates at 0.9: the formula, parameter by parameter."""
    model = make_model()
    teacher = AveragedModel(model, momentum=0.9)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1.0
        model.head.input.rho.fill_(3.0)
    teacher.update(model)

    teacher.update(model)

    torch.testing.assert_close(teacher.average.head.weight, start + 1.0 - 0.9**2)
    assert (teacher.average.head.input.rho == 3.0).all()


def test_a_teacher_never_trains_and_always_repeats_itself():
    """Evaluation mode whatever is asked, no gradients, no random rounding."""
    model = make_model()
    teacher = AveragedModel(model).train()
    batch = make_batch()

    first, second = teacher.logits(*batch), teacher.logits(*batch)

    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
