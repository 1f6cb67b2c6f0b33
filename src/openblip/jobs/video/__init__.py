"""Videos: what is seen when, as captions and answers with times, written as subtitles, JSON or a page."""
