"""The public face: what `import cfpo_hybrid` offers."""

import cfpo_hybrid


def test_all_names_exist_and_are_sorted():
    assert list(cfpo_hybrid.__all__) == sorted(cfpo_hybrid.__all__)
    missing = [name for name in cfpo_hybrid.__all__ if name not in vars(cfpo_hybrid)]
    assert not missing


def test_the_designs_import_line():
    from cfpo_hybrid import DataProto, PolicyLossInputs, build_policy_loss, register_policy_loss  # noqa: F401
