"""Distillation: the divergence against a loop, its gradient, and the averaged copy."""

import copy
import math

import pytest
import torch

from tests.trainer.model.test_encoder import make_batch, make_model
from trainer.model.teacher import AveragedTeacher, Teacher, average_momentum, divergence


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
def test_the_divergence_is_that_of_a_loop_in_plain_floats(tau):
    """tau^2 * KL(teacher || student), the mean over positions."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 4, 5)

    found = divergence(logits, teacher, tau)

    assert found.item() == pytest.approx(reference(logits.tolist(), teacher.tolist(), tau))


def test_the_gradient_draws_the_student_to_the_teacher_and_not_the_reverse():
    """tau * (q - p) / M for the student, by the formula; none for the teacher."""
    torch.manual_seed(0)
    logits = torch.randn(4, 5, requires_grad=True)
    teacher = torch.randn(4, 5, requires_grad=True)

    divergence(logits, teacher, 2.0).backward()

    difference = torch.softmax(logits / 2, -1) - torch.softmax(teacher / 2, -1)
    torch.testing.assert_close(logits.grad, 2.0 * difference.detach() / 4)
    assert teacher.grad is None


def test_no_predicted_position_is_a_divergence_of_zero():
    """Not NaN."""
    empty = torch.empty(0, 5)

    assert divergence(empty, empty, 2.0) == 0


def test_the_average_follows_parameters_and_takes_over_buffers():
    """After two updates at 0.999: the formula, parameter by parameter."""
    model = make_model()
    teacher = AveragedTeacher(model)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1.0
        model.head.input.rho.fill_(3.0)
    teacher.follow(model, 100_000)

    teacher.follow(model, 100_001)

    torch.testing.assert_close(teacher.encoder.head.weight, start + 1.0 - 0.999**2)
    assert (teacher.encoder.head.input.rho == 3.0).all()


def test_an_average_of_few_steps_is_not_mostly_of_the_first():
    """After 300 of them its initial weights count for nothing, and it ends as slow as any."""
    kept = math.prod(average_momentum(step) for step in range(1, 301))

    assert kept < 1e-6
    assert average_momentum(10**6) == 0.999


def test_the_average_turns_ternary_with_its_model():
    """Its columns start from its own weights, and follow those of the model from then on."""
    model = make_model()
    teacher = AveragedTeacher(model)
    for part in (model, teacher):
        part.apply_schedule(0, 100)
    with torch.no_grad():
        teacher.encoder.blocks[0].ffn.up.weight *= 2.0

    for part in (model, teacher):
        part.apply_schedule(60, 100)

    ours, theirs = teacher.encoder.blocks[0].ffn.up, model.blocks[0].ffn.up
    assert ours.is_ternary and ours.ternary_started
    torch.testing.assert_close(ours.dead_zone, 2.0 * theirs.dead_zone)


@pytest.mark.parametrize("make", [Teacher, AveragedTeacher])
def test_a_teacher_never_trains_and_always_repeats_itself(make):
    """Evaluation mode whatever is asked, no gradients, no random rounding."""
    model = make_model()
    teacher = make(copy.deepcopy(model)).train()
    batch = make_batch()

    first, second = teacher.logits(*batch), teacher.logits(*batch)

    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_an_average_leaves_its_model_as_it_was():
    """The model trains on."""
    model = make_model()

    AveragedTeacher(model)

    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_teacher_of_its_own_ignores_model_and_schedule():
    """The bits and weights that it ended with are what it predicts by."""
    model, teacher = make_model(), Teacher(make_model())
    before = teacher.logits(*make_batch())
    with torch.no_grad():
        model.head.weight += 1.0

    teacher.apply_schedule(0, 100)
    teacher.follow(model, 1)

    assert torch.equal(teacher.logits(*make_batch()), before)
