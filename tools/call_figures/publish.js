// Synthetic camera and microphone of a page, published over WHIP: numbered frames, with a beep at some of them.

(() => {
  const SIDE = 512;
  const STRIP = { top: 24, square: 16, height: 24 }; // pixels of barcode.SOURCE_FRAME in a frame of 512 x 512

  function paint(context, number) {
    context.fillStyle = "#556677";
    context.fillRect(0, 0, SIDE, SIDE);
    context.fillStyle = "#aa8866";
    context.fillRect((number * 7) % (SIDE - 100), 150, 100, 200);
    const sum = (31 * (number >> 16) + 17 * ((number >> 8) & 255) + 7 * (number & 255) + 90) & 255;
    const word = number * 256 + sum;
    for (let square = 0; square < 32; square++) {
      context.fillStyle = Math.floor(word / 2 ** (31 - square)) % 2 ? "#ffffff" : "#000000";
      context.fillRect(STRIP.square * square, STRIP.top, STRIP.square, STRIP.height);
    }
  }

  /** Publish `fps` frames a second with numbers below `length`; a beep starts at each frame whose number `every` divides. */
  window.publishNumbered = async (fps, length, every) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    const audio = new AudioContext({ latencyHint: "interactive" });
    await audio.resume();
    const voice = audio.createMediaStreamDestination();
    const gain = new GainNode(audio, { gain: 0 });
    const tone = new OscillatorNode(audio, { frequency: 1000 });
    tone.connect(gain).connect(voice);
    tone.start();
    const [track] = canvas.captureStream(0).getVideoTracks();
    const began = performance.now();
    let count = 0;
    const next = () => {
      paint(context, count % length);
      track.requestFrame();
      if (count % every === 0) {
        gain.gain.setValueAtTime(0.5, audio.currentTime);
        gain.gain.setValueAtTime(0, audio.currentTime + 0.06);
      }
      count++;
      setTimeout(next, Math.max(0, began + (1000 * count) / fps - performance.now()));
    };
    next();

    const pc = new RTCPeerConnection({ iceServers: [] });
    const { sender } = pc.addTransceiver(track, { direction: "sendonly" });
    pc.addTransceiver(voice.stream.getAudioTracks()[0], { direction: "sendonly" });
    await pc.setLocalDescription();
    while (pc.iceGatheringState !== "complete") await new Promise((resolve) => setTimeout(resolve, 5));
    const response = await fetch("/whip", { method: "POST", headers: { "Content-Type": "application/sdp" }, body: pc.localDescription.sdp });
    if (response.status !== 201) throw new Error(`${response.status} ${await response.text()}`);
    await pc.setRemoteDescription({ type: "answer", sdp: await response.text() });
    const parameters = sender.getParameters();
    parameters.degradationPreference = "maintain-framerate";
    parameters.encodings[0].maxBitrate = 2_500_000;
    await sender.setParameters(parameters);
  };
})();
