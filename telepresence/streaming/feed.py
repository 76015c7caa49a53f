"""How the avatar reaches one peer: which codec is asked for, and what its sender pulls from."""

from __future__ import annotations

from dataclasses import dataclass

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender, RTCRtpTransceiver

from telepresence.streaming import aiortc_hooks
from telepresence.streaming.hub import EncoderHub
from telepresence.streaming.offer import first_video_codec
from telepresence.streaming.sound import SoundHub
from telepresence.streaming.soundtrack import SoundTrack
from telepresence.streaming.tracks import PacketTrack, PictureTrack


@dataclass(frozen=True)
class Feed:
    """The stream of one daemon, for every peer that takes it: viewers, calls, a server that it is published to.

    ``shared``: peers that speak H.264 get the packets of the hub, instead of an encoder of their own.
    """

    hub: EncoderHub
    shared: bool
    sound: SoundHub

    def add(self, pc: RTCPeerConnection, direction: str) -> RTCRtpTransceiver:
        """Give ``pc`` a video section in ``direction`` (``sendonly``, ``sendrecv``), the cheapest codec first."""
        transceiver = pc.addTransceiver("video", direction=direction)
        first = "video/H264" if self.shared else "video/VP8"  # VP8 is the cheaper one to encode for each viewer
        codecs = RTCRtpSender.getCapabilities("video").codecs
        transceiver.setCodecPreferences(sorted(codecs, key=lambda codec: codec.mimeType != first))
        return transceiver

    def attach(self, sender: RTCRtpSender, answer: str) -> None:
        """Let ``sender`` send what the SDP ``answer`` settled on; call it before the connection is made."""
        shared = self.shared and first_video_codec(answer) == "H264"
        track: MediaStreamTrack = PacketTrack(self.hub) if shared else PictureTrack(self.hub)
        sender.replaceTrack(track)
        if shared:
            aiortc_hooks.on_feedback(sender, self.hub.request_keyframe)

    def add_sound(self, pc: RTCPeerConnection, direction: str) -> RTCRtpTransceiver:
        """Give ``pc`` an Opus section in ``direction``; one that sends plays what everybody hears."""
        transceiver = pc.addTransceiver("audio", direction=direction)
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        if direction != "recvonly":
            transceiver.sender.replaceTrack(SoundTrack(self.sound))
        return transceiver
