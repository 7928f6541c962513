"""The look of the pages: one palette in light and dark, the system's own fonts, and nothing from elsewhere."""

from dataclasses import asdict, dataclass

from gradio.themes import Base
from gradio.themes.utils.colors import Color
from gradio.themes.utils.sizes import Size


@dataclass(frozen=True)
class Palette:
    """The colours of one mode. Writing in `ink`, `soft`, `accent` or a state is legible on paper, card and wash."""

    paper: str  # the page
    card: str  # what lies on it
    wash: str  # quiet grounds: the canvas, code, hovered rows
    line: str  # rules between things
    edge: str  # borders of what can be operated
    ink: str
    soft: str
    accent: str
    accent_strong: str  # the accent when pointed at
    accent_ink: str  # writing on the accent
    accent_wash: str
    good: str
    warn: str
    bad: str
    bad_wash: str


LIGHT = Palette(
    paper="#FAF7F2", card="#FFFDFA", wash="#F3EEE7", line="#E6DFD4", edge="#8F8679", ink="#26221D", soft="#645D54",
    accent="#7A3E9D", accent_strong="#642F84", accent_ink="#FFFFFF", accent_wash="#F1E6F6",
    good="#2B6638", warn="#7A5200", bad="#9C2F25", bad_wash="#FBEAE6",
)  # fmt: skip
DARK = Palette(
    paper="#171512", card="#1F1C19", wash="#292520", line="#39332D", edge="#7D7468", ink="#ECE6DC", soft="#ACA397",
    accent="#C9A0E2", accent_strong="#D9B8EE", accent_ink="#1C1222", accent_wash="#3A2B44",
    good="#8FCF9C", warn="#E3B95F", bad="#F2A196", bad_wash="#3B211D",
)  # fmt: skip

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif'
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace'

_PLUM = Color(
    "#FAF5FC", "#F1E6F6", "#E3CEED", "#D1ADE2", "#BD8AD4", "#A062BF",
    "#7A3E9D", "#642F84", "#50256A", "#3E1D52", "#2A1338", name="studio-plum",
)  # fmt: skip
_STONE = Color(
    "#FAF7F2", "#F2EDE5", "#E6DFD4", "#D0C7BA", "#ACA397", "#857C70",
    "#645D54", "#4B453E", "#39332D", "#26221D", "#171512", name="studio-stone",
)  # fmt: skip
_TEXT = Size("11px", "12px", "13px", "14px", "16px", "20px", "26px", name="studio-text")
_ROUND = Size("3px", "5px", "7px", "9px", "12px", "14px", "20px", name="studio-round")
_SPACE = Size("2px", "4px", "6px", "8px", "10px", "14px", "20px", name="studio-space")


class StudioTheme(Base):
    """Gradio's components in the studio's palette; `--studio-*` gives every colour of it to the style sheet."""

    def __init__(self) -> None:
        super().__init__(
            primary_hue=_PLUM, secondary_hue=_PLUM, neutral_hue=_STONE, text_size=_TEXT, radius_size=_ROUND,
            spacing_size=_SPACE, font=("sans-serif",), font_mono=("monospace",),
        )  # fmt: skip
        self.name = "studio"
        # Not as arguments: gradio quotes every family, and a quoted "system-ui" is no generic family any more.
        self.font, self.font_mono = SANS, MONO
        for palette, suffix in ((LIGHT, ""), (DARK, "_dark")):
            for key, colour in asdict(palette).items():
                setattr(self, f"studio_{key}{suffix}", colour)
        self._ground()
        self._blocks()
        self._fields()
        self._buttons()

    def _ground(self) -> None:
        # What names a variable holds in both modes; gradio's base has dark values of its own, which are to go.
        self._both(
            body_background_fill="*studio_paper", body_text_color="*studio_ink", body_text_color_subdued="*studio_soft",
            background_fill_primary="*studio_card", background_fill_secondary="*studio_wash",
            border_color_primary="*studio_line", border_color_accent="*studio_accent",
            border_color_accent_subdued="*studio_accent_wash", color_accent_soft="*studio_accent_wash",
            link_text_color="*studio_accent", link_text_color_hover="*studio_accent_strong",
            link_text_color_active="*studio_accent_strong", link_text_color_visited="*studio_accent",
            code_background_fill="*studio_wash", error_background_fill="*studio_bad_wash",
            error_border_color="*studio_bad", error_text_color="*studio_bad", error_icon_color="*studio_bad",
            accordion_text_color="*studio_ink", table_text_color="*studio_ink",
            table_border_color="*studio_line", table_even_background_fill="*studio_card",
            table_odd_background_fill="*studio_card", table_row_focus="*studio_accent_wash",
            stat_background_fill="*studio_accent_wash", shadow_drop="none",
            shadow_drop_lg="0 8px 28px rgb(0 0 0 / .14)",
        )  # fmt: skip
        self.set(color_accent="*studio_accent", loader_color="*studio_accent", slider_color="*studio_accent")
        self.set(prose_header_text_weight="650", section_header_text_weight="600", layout_gap="16px")

    def _blocks(self) -> None:
        self._both(
            block_background_fill="*studio_card", block_border_color="*studio_line", block_border_width="1px",
            block_shadow="none", block_info_text_color="*studio_soft", block_label_background_fill="*studio_card",
            block_label_border_color="*studio_line", block_label_text_color="*studio_soft",
            block_title_text_color="*studio_ink", panel_background_fill="*studio_card",
            panel_border_color="*studio_line",
        )  # fmt: skip
        self.set(block_title_text_weight="600", block_label_text_weight="500", block_label_text_size="*text_sm")
        self.set(block_title_text_size="*text_sm", block_info_text_size="*text_sm", block_radius="*radius_lg")
        self.set(container_radius="*radius_lg", form_gap_width="1px")

    def _fields(self) -> None:
        self._both(
            input_background_fill="*studio_card", input_background_fill_focus="*studio_card",
            input_background_fill_hover="*studio_card", input_border_color="*studio_edge",
            input_border_color_focus="*studio_accent", input_border_color_hover="*studio_ink",
            input_placeholder_color="*studio_soft", input_border_width="1px", input_shadow="none",
            input_shadow_focus="0 0 0 2px var(--studio-accent-wash)",
            checkbox_background_color="*studio_card", checkbox_background_color_focus="*studio_card",
            checkbox_background_color_hover="*studio_wash", checkbox_background_color_selected="*studio_accent",
            checkbox_border_color="*studio_edge", checkbox_border_color_focus="*studio_accent",
            checkbox_border_color_hover="*studio_ink", checkbox_border_color_selected="*studio_accent",
            checkbox_label_background_fill="*studio_card", checkbox_label_background_fill_hover="*studio_wash",
            checkbox_label_background_fill_selected="*studio_accent_wash", checkbox_label_border_color="*studio_line",
            checkbox_label_border_color_hover="*studio_edge", checkbox_label_border_color_selected="*studio_accent",
            checkbox_label_text_color="*studio_ink", checkbox_label_text_color_selected="*studio_ink",
            checkbox_label_border_width="1px", checkbox_label_shadow="none",
        )  # fmt: skip
        self.set(
            input_radius="*radius_md",
            input_text_size="*text_md",
            checkbox_label_text_size="*text_md",
            checkbox_border_radius="4px",
        )

    def _buttons(self) -> None:
        self._both(
            button_primary_background_fill="*studio_accent", button_primary_text_color="*studio_accent_ink",
            button_primary_background_fill_hover="*studio_accent_strong", button_primary_border_color="*studio_accent",
            button_primary_text_color_hover="*studio_accent_ink", button_primary_shadow="none",
            button_primary_border_color_hover="*studio_accent_strong",
            button_secondary_background_fill="*studio_card", button_secondary_background_fill_hover="*studio_wash",
            button_secondary_border_color="*studio_edge", button_secondary_border_color_hover="*studio_ink",
            button_secondary_text_color="*studio_ink", button_secondary_text_color_hover="*studio_ink",
            button_secondary_shadow="none", button_cancel_background_fill="*studio_card",
            button_cancel_background_fill_hover="*studio_bad_wash", button_cancel_border_color="*studio_bad",
            button_cancel_border_color_hover="*studio_bad", button_cancel_text_color="*studio_bad",
            button_cancel_text_color_hover="*studio_bad", button_cancel_shadow="none", button_border_width="1px",
        )  # fmt: skip
        self.set(button_transform_hover="none", button_transform_active="none", button_transition="background .12s")
        for size in ("large", "medium", "small"):
            setattr(self, f"button_{size}_text_weight", "600")
            setattr(self, f"button_{size}_radius", "var(--radius-md)")

    def _both(self, **values: str) -> None:
        for key, value in values.items():
            setattr(self, key, value)
            setattr(self, f"{key}_dark", value)
