"""Verify a DSSE envelope with securesystemslib: verify_envelope.py ENVELOPE PUBLIC_KEY."""

import json
import pathlib
import sys

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

envelope_file, key_file = map(pathlib.Path, sys.argv[1:3])
fields = json.loads(envelope_file.read_bytes())
keyid = fields["signatures"][0]["keyid"]
# It takes the fields out of the dictionary.
envelope = Envelope.from_dict(fields)
public_key = load_pem_public_key(key_file.read_bytes())
key = SSlibKey.from_crypto(public_key, keyid=keyid)
envelope.verify([key], 1)
