"""Starting and ending what a run needs: Ray, and the worker groups."""
