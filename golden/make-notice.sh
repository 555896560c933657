#!/usr/bin/env bash
# Makes bridge/assets/notice.ulaw again: what a caller hears when the call has to end early.
# Needs espeak-ng and sox (Debian packages of these names). The words are ours and the voice is synthesised;
# to our knowledge the program's licence lays no claim to what it speaks.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
espeak-ng -v en-us -s 190 -w "$work/voice.wav" "We are sorry, this call cannot continue right now. Goodbye."
# Telephone band, -20 dBFS on average, 100 ms of silence at both ends, whole 20 ms frames.
sox -D "$work/voice.wav" -r 8000 -c 1 -b 16 "$work/band.wav" silence 1 0.01 0.5% reverse silence 1 0.01 0.5% reverse \
  sinc 250-3400 gain -n -1
rms=$(sox "$work/band.wav" -n stat 2>&1 | awk '/RMS.*amplitude/ {print $3}')
gain=$(awk -v rms="$rms" 'BEGIN {print 20 * log(0.1 / rms) / log(10)}')
sox -D "$work/band.wav" -t ul -r 8000 -c 1 "$work/notice.ulaw" gain "$gain" pad 0.1 0.1
size=$(stat -c %s "$work/notice.ulaw")
head -c $(((size + 159) / 160 * 160 - size)) /dev/zero | tr '\0' '\377' >>"$work/notice.ulaw"
cp "$work/notice.ulaw" bridge/assets/notice.ulaw
echo "bridge/assets/notice.ulaw: $(($(stat -c %s bridge/assets/notice.ulaw) / 8)) ms"
