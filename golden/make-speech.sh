#!/usr/bin/env bash
# Makes the spoken clips of golden/speech again; `cargo run --release -p golden --bin bless -- --write` accepts them.
# Needs espeak-ng and sox (Debian packages of these names). The words are ours and the voices are synthesised;
# to our knowledge the program's licence lays no claim to what it speaks.
set -euo pipefail
cd "$(dirname "$0")/speech"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# clip NAME RATE VOICE SPEED WORDS [sox effects]: no silence at the ends, -20 dBFS on average, whole 20 ms frames.
clip() {
  local name=$1 rate=$2 voice=$3 speed=$4 words=$5
  shift 5
  espeak-ng -v "$voice" -s "$speed" -w "$work/voice.wav" "$words"
  sox -D "$work/voice.wav" -r "$rate" -c 1 -b 16 "$work/band.wav" \
    silence 1 0.01 0.5% reverse silence 1 0.01 0.5% reverse "$@" gain -n -1
  local rms gain samples frame
  rms=$(sox "$work/band.wav" -n stat 2>&1 | awk '/RMS.*amplitude/ {print $3}')
  gain=$(awk -v rms="$rms" 'BEGIN {print 20 * log(0.1 / rms) / log(10)}')
  samples=$(soxi -s "$work/band.wav")
  frame=$((rate / 50))
  sox -D "$work/band.wav" "$name.wav" gain "$gain" pad 0 "$(((frame - samples % frame) % frame))s"
  echo "golden/speech/$name.wav: $(($(soxi -s "$name.wav") * 1000 / rate)) ms"
}

# The caller comes through a telephone; the agent is as wide as the synthesiser speaks (22.05 kHz).
clip caller_question 8000 en-us+f3 170 "Hello, when are you open on Saturday?" sinc 250-3400
clip caller_stop 8000 en-us+f3 190 "Stop, please." sinc 250-3400
clip agent_greeting 24000 en-us+m3 175 "Hello, flower shop. How can I help you?"
clip agent_answer 24000 en-us+m3 160 \
  "On Saturday we are open from nine until two. If you call before noon, your flowers are ready the same day."
