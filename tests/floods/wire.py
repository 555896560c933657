"""What a caller of these tests says on the wire: Twilio's signature, a WebSocket by hand, and Twilio's messages."""

import base64
import hashlib
import hmac
import json
import os
import struct

TOKEN = "0123456789abcdef0123456789abcdef"
SILENCE = base64.b64encode(b"\xff" * 160).decode()


def sign(url, parameters=()):
    text = url + "".join(name + value for name, value in sorted(parameters))
    return base64.b64encode(hmac.new(TOKEN.encode(), text.encode(), hashlib.sha1).digest()).decode()


def upgrade(port):
    """The request by which Twilio opens its WebSocket, signed."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (f"GET /twilio HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"X-Twilio-Signature: {sign(f'ws://127.0.0.1:{port}/twilio')}\r\n\r\n").encode()


def webhook(port, call_sid, close=True):
    """The request by which Twilio asks what to do with a call, signed."""
    body = f"CallSid={call_sid}&From=100"
    signature = sign(f"http://127.0.0.1:{port}/voice", [("CallSid", call_sid), ("From", "100")])
    return (f"POST /voice HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{'Connection: close' if close else 'X: y'}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nX-Twilio-Signature: {signature}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()


def token_of(answer):
    text = answer.decode(errors="replace")
    assert 'name="token" value="' in text, text[:300]
    return text.split('name="token" value="')[1].split('"')[0]


def frame(payload, opcode=1):
    """A frame as a client sends it, with a mask of zeros."""
    if isinstance(payload, str):
        payload = payload.encode()
    if len(payload) < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | len(payload))
    else:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, len(payload))
    return head + b"\0\0\0\0" + payload


def connected():
    return frame(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))


def start(call_sid, stream_sid, token):
    return frame(json.dumps({"event": "start", "sequenceNumber": "1", "streamSid": stream_sid, "start": {
        "streamSid": stream_sid, "accountSid": "AC1", "callSid": call_sid, "tracks": ["inbound"],
        "customParameters": {"token": token},
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}}))


def media(stream_sid, chunk):
    return frame(f'{{"event":"media","sequenceNumber":"{chunk + 1}","streamSid":"{stream_sid}","media":{{"track":"inbound",'
                 f'"chunk":"{chunk}","timestamp":"{chunk * 20}","payload":"{SILENCE}"}}}}')


def stop(stream_sid):
    return frame(json.dumps({"event": "stop", "sequenceNumber": "99", "streamSid": stream_sid, "stop": {}}))
