"""The Python reading of the control protocol, held against the document that defines it."""

import json
import math
from pathlib import Path

import pytest

from tandem_ray import protocol
from tandem_ray.protocol import LineError, parse_event

DOCUMENT = Path(__file__).parents[2] / "crates/launch/PROTOCOL.md"


def test_every_example_of_the_document_is_understood() -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("{")]
    events = [parse_event(line.encode()) for line in lines if '"event"' in line]
    assert all(event is not None for event in events)
    assert {type(event) for event in events} == {
        protocol.Hello,
        protocol.Phase,
        protocol.Progress,
        protocol.Message,
        protocol.Report,
        protocol.Error,
        protocol.Done,
    }
    commands = [json.loads(line) for line in lines if '"command"' in line]
    assert commands == [json.loads(protocol.encode_command("stop")), json.loads(protocol.encode_command("save_now"))]


def test_values_that_are_not_finite_are_read() -> None:
    event = parse_event(b'{"event":"done","metrics":{"a":"NaN","b":"inf","c":"-inf","d":2.5,"e":3}}')
    assert isinstance(event, protocol.Done)
    assert math.isnan(event.metrics["a"])
    assert [event.metrics[name] for name in "bcd"] == [math.inf, -math.inf, 2.5]
    assert repr(event.metrics["e"]) == "3"


def test_newer_messages_and_fields_are_ignored() -> None:
    assert parse_event(b'{"event":"dance","tempo":3}') is None
    assert parse_event(b'{"event":"phase","name":"saving","percent":3}') == protocol.Phase("saving")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"hello", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[]", "string"),
        (b'{"event":1}', "string"),
        (b'{"event":"progress","epoch":0,"metrics":{}}', "progress"),
        (b'{"event":"done","metrics":{"loss":null}}', "done"),
        (b'{"event":"done","metrics":3}', "done"),
    ],
)
def test_a_broken_line_says_what_is_wrong(line: bytes, why: str) -> None:
    with pytest.raises(LineError, match=why):
        parse_event(line)
