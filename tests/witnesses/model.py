"""The official `openai` client talks to mock-openai over a socket, and every frame is held against the client's types."""

import asyncio
import base64
import json
import os
import re
import struct
import sys
import tempfile
import wave
from typing import Annotated, Union, get_args, get_origin

from openai import AsyncOpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter

MOCK = os.path.join(os.environ["BIN"], "mock-openai")
UNION = TypeAdapter(RealtimeServerEvent)
RATE = 24_000


def members(kind):
    """The classes of a union, whatever it is wrapped in."""
    if get_origin(kind) is Annotated:
        yield from members(get_args(kind)[0])
    elif get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        for part in get_args(kind):
            yield from members(part)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind


CLASSES = {
    name: cls for cls in members(RealtimeServerEvent) for name in get_args(cls.model_fields["type"].annotation)
}
# What recorded traffic has and these types do not: the mock follows the wire. Each is a path, with what it is.
BEYOND_THE_TYPES = {
    "obfuscation": "padding of deltas of text",
    "session.id": "", "session.object": "", "session.expires_at": "", "session.temperature": "",
    "item.phase": "commentary or final answer", "response.output[].phase": "",
    "response.usage.output_token_details.reasoning_tokens": "with models that reason",
}


class Mock:
    """mock-openai with these flags, on a port of its own."""

    def __init__(self, *flags, script=None):
        self.folder = tempfile.TemporaryDirectory()
        self.frames_file = os.path.join(self.folder.name, "frames.ndjson")
        self.flags = list(flags)
        if script is not None:
            path = os.path.join(self.folder.name, "script.toml")
            with open(path, "w") as file:
                file.write(script)
            self.flags += ["--script", path]

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            MOCK, "--listen", "127.0.0.1:0", "--frames", self.frames_file, *self.flags, stdout=asyncio.subprocess.PIPE
        )
        line = (await asyncio.wait_for(self.process.stdout.readline(), 10)).decode()
        self.port = int(re.search(r":(\d+)/", line).group(1))
        self.drain = asyncio.create_task(self.process.stdout.read())
        return self

    async def __aexit__(self, *_):
        self.process.terminate()
        await self.process.wait()
        await self.drain
        self.folder.cleanup()

    def client(self):
        return AsyncOpenAI(api_key="any", websocket_base_url=f"ws://127.0.0.1:{self.port}/v1")

    def frames(self):
        with open(self.frames_file) as file:
            lines = [json.loads(line) for line in file]
        return [line["event"] for line in lines if line["dir"] == "out"]


SEEN = {}


def unknown(value, cls, path=""):
    """Fields the client's class does not have."""
    fields = cls.model_fields
    for key, inner in value.items():
        here = f"{path}.{key}" if path else key
        if key not in fields and not any(field.alias == key for field in fields.values()):
            yield here
            continue
        classes = [c for c in members(fields[key].annotation)] if key in fields else []
        if isinstance(inner, dict) and classes:
            best = min(classes, key=lambda c: len(list(unknown(inner, c))))
            yield from unknown(inner, best, here)


def check(frames):
    for event in frames:
        kind = event["type"]
        assert kind in CLASSES, f"{kind} is no event of the client"
        parsed = CLASSES[kind].model_validate(event)
        resolved = UNION.validate_python(event)
        assert type(resolved) is type(parsed), f"{kind} was taken for {type(resolved).__name__}"
        for field in unknown(event, CLASSES[kind]):
            assert field in BEYOND_THE_TYPES, f"{kind} has `{field}`, which the client does not know"
        SEEN[kind] = SEEN.get(kind, 0) + 1


def speech():
    """Words, as the model hears them."""
    with wave.open("golden/speech/caller_question.wav") as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    samples = struct.unpack(f"<{len(data) // 2}h", data)
    repeat = RATE // rate
    return struct.pack(f"<{len(samples) * repeat}h", *(s for s in samples for _ in range(repeat)))


SILENCE = bytes(2 * RATE)


async def say(connection, audio, pace=8):
    """Audio in pieces of 100 ms, faster than real time unless asked otherwise."""
    piece = RATE // 10 * 2
    for start in range(0, len(audio), piece):
        chunk = base64.b64encode(audio[start : start + piece]).decode()
        await connection.input_audio_buffer.append(audio=chunk)
        await asyncio.sleep(0.1 / pace)


async def until(connection, *kinds):
    """The next event of one of these kinds; the client parses all before it."""
    while True:
        event = await asyncio.wait_for(connection.recv(), 20)
        if event.type in kinds:
            return event


def session(**more):
    audio = {
        "input": {
            "format": {"type": "audio/pcm", "rate": RATE},
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
        },
        "output": {"format": {"type": "audio/pcm", "rate": RATE}, "voice": "marin"},
    }
    return {"type": "realtime", "instructions": "Be brief.", "audio": audio, **more}


async def a_session_and_a_turn():
    async with Mock() as mock:
        async with mock.client().realtime.connect(model="gpt-realtime-2.1") as c:
            created = await until(c, "session.created")
            assert created.session.model == "gpt-realtime-2.1", created
            await c.session.update(session=session())
            await until(c, "session.updated")
            talking = asyncio.create_task(say(c, speech() + SILENCE))
            await until(c, "input_audio_buffer.speech_started")
            await until(c, "input_audio_buffer.speech_stopped")
            await until(c, "input_audio_buffer.committed")
            await until(c, "response.created")
            heard = 0
            while (event := await until(c, "response.output_audio.delta", "response.done")).type != "response.done":
                heard += len(base64.b64decode(event.delta))
            assert event.response.status == "completed" and heard >= RATE * 2 * 1.4, (event, heard)
            await talking
            await asyncio.sleep(0.5)
        check(mock.frames())


async def an_interruption():
    async with Mock("--answers", "8000", "--speed", "2") as mock:
        async with mock.client().realtime.connect(model="gpt-realtime-2.1") as c:
            await c.session.update(session=session())
            await until(c, "session.updated")
            await say(c, speech() + SILENCE)
            first = await until(c, "response.output_audio.delta")
            talking = asyncio.create_task(say(c, speech() + SILENCE))
            await until(c, "input_audio_buffer.speech_started")
            done = await until(c, "response.done")
            assert done.response.status == "cancelled", done
            assert done.response.status_details.reason == "turn_detected", done
            await c.conversation.item.truncate(item_id=first.item_id, content_index=0, audio_end_ms=300)
            cut = await until(c, "conversation.item.truncated")
            assert (cut.item_id, cut.audio_end_ms) == (first.item_id, 300), cut
            await until(c, "response.created")
            await talking
            await c.response.cancel()
            await until(c, "response.done")
            await c.conversation.item.truncate(item_id="item_unknown", content_index=0, audio_end_ms=1)
            error = await until(c, "error")
            assert error.error.type == "invalid_request_error", error
        check(mock.frames())


async def a_function():
    async with Mock("--tool", 'lookup_order={"order":4711}') as mock:
        async with mock.client().realtime.connect(model="gpt-realtime-2.1") as c:
            tool = {"type": "function", "name": "lookup_order", "parameters": {"type": "object", "properties": {}}}
            await c.session.update(session=session(tools=[tool], tool_choice="auto"))
            await until(c, "session.updated")
            await c.response.create()
            call = await until(c, "response.function_call_arguments.done")
            assert json.loads(call.arguments) == {"order": 4711} and call.name == "lookup_order", call
            done = await until(c, "response.done")
            assert done.response.output[0].type == "function_call", done
            await c.conversation.item.create(
                item={"type": "function_call_output", "call_id": call.call_id, "output": '{"state":"shipped"}'}
            )
            await c.response.create()
            await until(c, "response.output_audio.done")
            done = await until(c, "response.done")
            assert done.response.status == "completed", done
        check(mock.frames())


SCRIPT = """
turns = [
  { text_only = true },
  { status = { failed = { code = "server_error" } } },
  { status = { incomplete = "max_output_tokens" }, answers = 1000 },
  { answers = 600, error = { code = "inference_error" } },
]
transcription = [{ when = "fails" }, {}]
events = [{ at_ms = 100, does = "rate_limits" }]
"""


async def everything_else():
    async with Mock(script=SCRIPT) as mock:
        async with mock.client().realtime.connect(model="gpt-realtime-2.1") as c:
            vad = {"type": "server_vad", "silence_duration_ms": 400, "create_response": False, "idle_timeout_ms": 5000}
            settings = session()
            settings["audio"]["input"]["turn_detection"] = vad
            await c.session.update(session=settings)
            await until(c, "session.updated")
            await c.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
            )
            item = (await until(c, "conversation.item.done")).item
            await c.conversation.item.retrieve(item_id=item.id)
            await until(c, "conversation.item.retrieved")
            await c.conversation.item.delete(item_id=item.id)
            await until(c, "conversation.item.deleted")
            for status in ["completed", "failed", "incomplete", "completed"]:
                await c.response.create()
                done = await until(c, "response.done")
                assert done.response.status == status, done
            for _ in range(2):
                await say(c, speech() + SILENCE)
                await until(
                    c,
                    "conversation.item.input_audio_transcription.failed",
                    "conversation.item.input_audio_transcription.completed",
                )
            await c.input_audio_buffer.append(audio=base64.b64encode(SILENCE).decode())
            await c.input_audio_buffer.clear()
            await until(c, "input_audio_buffer.cleared")
            await c.input_audio_buffer.append(audio=base64.b64encode(speech()[:RATE]).decode())
            await c.input_audio_buffer.commit()
            await until(c, "input_audio_buffer.committed")
            await c.response.create()
            await until(c, "response.done")
            await until(c, "input_audio_buffer.timeout_triggered")
        check(mock.frames())


async def a_refusal():
    """A key that is refused is refused the way the service does it: by an event and a close."""
    async with Mock("--fault", "bad-key") as mock:
        async with mock.client().realtime.connect(model="gpt-realtime-2.1") as c:
            error = await until(c, "error")
            assert error.error.code == "invalid_api_key", error
        check(mock.frames())


async def main():
    scenes = [a_session_and_a_turn, an_interruption, a_function, everything_else, a_refusal]
    for scene, result in zip(scenes, await asyncio.gather(*(s() for s in scenes), return_exceptions=True)):
        if isinstance(result, BaseException):
            print(f"FAILED  {scene.__name__}")
            raise result
        print(f"passed  {scene.__name__}")
    listed = await asyncio.create_subprocess_exec(MOCK, "--events", stdout=asyncio.subprocess.PIPE)
    can_say = (await listed.communicate())[0].decode().split()
    never = [kind for kind in can_say if kind not in SEEN]
    assert not never, f"no frame of these kinds was seen: {never}"
    print(f"passed  {sum(SEEN.values())} frames of {len(SEEN)} kinds, all that the mock can say, are valid to the client")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
