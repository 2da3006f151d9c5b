"""finetune selftest: does this installation compute what it should?"""

from finetune.cli.common import JsonOption, out, print_json, tell_messages


def selftest(as_json: JsonOption = False) -> None:
    """Train a tiny model every way that this machine has.

    And compare each with one plain process; exit 3 where one differs.
    """
    from finetune import api
    from finetune.errors import CheckFailed

    tell_messages(as_json)
    report = api.selftest()
    if as_json:
        print_json(report)
    else:
        for name, reason in report["left_out"].items():
            out(f"left out: {name}: {reason}")
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
        out(f"with {versions}")
    cases = report["cases"]
    failed = [case["name"] for case in cases if not case["holds"]]
    if failed:
        raise CheckFailed(
            f"selftest: {', '.join(failed)} {'differs' if len(failed) == 1 else 'differ'} from the plain run."
        )
    if not as_json:
        out(f"selftest: all {len(cases)} ways agree with one plain process, in {report['seconds']:.0f} s")
