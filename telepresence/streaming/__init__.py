"""The daemon's face to browsers: one shared encode, WHEP and WHIP signalling, the web page, a browser's camera."""

from telepresence.streaming.frame_sink import Outlet as Outlet
from telepresence.streaming.hooks import Controls as Controls
from telepresence.streaming.hooks import StreamHooks as StreamHooks
from telepresence.streaming.server import MediaServer as MediaServer
from telepresence.streaming.settings import StreamSettings as StreamSettings
from telepresence.streaming.video.stats import StreamStats as StreamStats
