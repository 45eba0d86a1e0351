"""Sound and time series, of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo.making import ENCODER_DECODER, SPEECH, TINY, Made, mel, of, of_tensor, series, waves

FORECAST = {
    "past_values": torch.linspace(1, 2, 28)[None],
    "past_time_features": torch.zeros(1, 28, 2),
    "past_observed_mask": torch.ones(1, 28),
    "future_values": torch.linspace(1, 2, 8)[None],
    "future_time_features": torch.zeros(1, 8, 2),
}
FORECASTING = {
    **ENCODER_DECODER,
    "prediction_length": 8,
    "context_length": 24,
    "lags_sequence": [1, 2, 3, 4],
    "num_time_features": 2,
    "use_cache": False,
}
ENTRIES: dict[str, Callable[[], Made]] = {
    "Wav2Vec2": of("Wav2Vec2ForCTC", waves(), **SPEECH),
    "HuBERT": of("HubertForCTC", waves(), **SPEECH),
    "WavLM": of("WavLMForCTC", waves(), **SPEECH),
    "SEW": of("SEWForCTC", waves(), **SPEECH, squeeze_factor=2),
    "Data2Vec (audio)": of(
        "Data2VecAudioForCTC", waves(), **{**SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
    ),
    "Wav2Vec2-Conformer": of(
        "Wav2Vec2ConformerForCTC", waves(), **SPEECH, conv_depthwise_kernel_size=7, position_embeddings_type="rotary"
    ),
    "Wav2Vec2-BERT": of(
        "Wav2Vec2BertForCTC",
        mel(),
        **TINY,
        vocab_size=12,
        feature_projection_input_dim=16,
        conv_depthwise_kernel_size=7,
        position_embeddings_type="relative_key",
    ),
    "Audio Spectrogram Transformer": of(
        "ASTForAudioClassification",
        {"input_values": torch.zeros(1, 64, 32)},
        **TINY,
        patch_size=16,
        max_length=64,
        num_mel_bins=32,
        frequency_stride=16,
        time_stride=16,
        num_labels=5,
    ),
    "Whisper (encoder)": of(
        "WhisperForAudioClassification",
        {"input_features": torch.zeros(1, 16, 64)},
        num_mel_bins=16,
        max_source_positions=32,
        **ENCODER_DECODER,
        num_labels=5,
    ),
    "Speech2Text (encoder and decoder)": of(
        "Speech2TextForConditionalGeneration",
        {**mel(), "decoder_input_ids": torch.arange(1, 9)[None]},
        vocab_size=99,
        input_feat_per_channel=16,
        conv_channels=32,
        max_source_positions=64,
        max_target_positions=32,
        use_cache=False,
        **ENCODER_DECODER,
    ),
    "HiFi-GAN (SpeechT5)": of_tensor(
        "SpeechT5HifiGan",
        (torch.zeros(1, 16, 8),),
        model_in_dim=8,
        upsample_initial_channel=32,
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    ),
    "PatchTST": of(
        "PatchTSTForPrediction",
        series(),
        "prediction_outputs",
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        num_hidden_layers=2,
        d_model=32,
        num_attention_heads=4,
        ffn_dim=64,
        prediction_length=8,
        loss="mse",
    ),
    "PatchTSMixer": of(
        "PatchTSMixerForPrediction",
        series(),
        "prediction_outputs",
        context_length=32,
        patch_length=8,
        patch_stride=8,
        num_input_channels=3,
        d_model=16,
        num_layers=2,
        prediction_length=8,
        loss="mse",
    ),
    "Time Series Transformer": of("TimeSeriesTransformerModel", FORECAST, "last_hidden_state", **FORECASTING),
    "Informer": of("InformerModel", FORECAST, "last_hidden_state", **FORECASTING, distil=False),
}
