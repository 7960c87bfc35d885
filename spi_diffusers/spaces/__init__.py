"""A page to try policies and own data, here or as a Space on the Hub; only `page.py` needs Gradio."""
