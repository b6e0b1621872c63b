"""Speech to text: transcripts and their formats, voice activity, the packing of windows, live transcription."""
