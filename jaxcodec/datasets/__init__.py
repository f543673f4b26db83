"""tfds builders for speech: `speech.SpeechFolder`, `speech.SpeechSample` and `openslr66.OpenSLR66`.

All of them write array_record shards of the same features (`speech.FEATURES`), read without TensorFlow.
`sample/` is the bundled corpus; its `NOTICE.md` has the licences.
"""
