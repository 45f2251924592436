"""A page that shows a run while it goes on: live, dynamic Gaussians in the browser, over a WebSocket.

    pipeline thread ─> LiveViewer ─(bounded queue)─> packing ─> SceneBuffer ─> one Delivery per client ─> page

Only `server` needs the extra `[view]` (websockets); nothing here is imported unless a view was asked for.
"""
