"""Media server: web page, WHEP and WHIP signalling, shared video and audio encoding, and browser cameras."""

from telepresence.streaming.daemon_interface import DaemonInterface as DaemonInterface
from telepresence.streaming.frame_sink import FrameSink as FrameSink
from telepresence.streaming.server import MediaServer as MediaServer
from telepresence.streaming.settings import StreamSettings as StreamSettings
from telepresence.streaming.video.stats import StreamStats as StreamStats
