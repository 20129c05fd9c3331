#!/bin/sh
# Builds what the executable embeds, if anything it is made of changed.
set -eu
cd "$(dirname "$0")/../.."
exec "${GO:-go}" run ./runtime/embedded/build
