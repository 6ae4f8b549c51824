from trainer.config.problem import divisors, nearest_multiples, one_of


def test_values_nearby():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert nearest_multiples(100, 16) == [96, 112]
    assert nearest_multiples(3, 16) == [16]
    assert one_of("trainer.device", "cpu", ("auto", "cpu")) == []
    (problem,) = one_of("trainer.device", "cup", ("auto", "cpu"))
    assert problem.message == "trainer.device='cup' is unknown; known: auto, cpu; did you mean 'cpu'?"
