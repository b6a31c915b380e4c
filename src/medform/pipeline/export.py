from pathlib import Path
def export_model(*a): return None
