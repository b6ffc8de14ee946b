"""Similarity probes: pairs of everyday and technical sentences with a graded similarity, written for this
project.

They measure whether tuning on one project's feedback made a model forget what sentences mean in general.
Grades: 5 same meaning, 4 same but for a detail, 2 same topic, 1 same field, 0 unrelated.
"""

from __future__ import annotations

from typing import NamedTuple


class Probe(NamedTuple):
    """Two sentences and their similarity from 0 to 5."""

    left: str
    right: str
    grade: float


_GRADES = (5.0, 4.0, 2.0, 1.0, 0.0)
# An anchor, then one sentence for each grade above.
_FAMILIES: tuple[tuple[str, str, str, str, str, str], ...] = (
    (
        "A woman is slicing a ripe tomato in the kitchen.",
        "In the kitchen, a woman cuts a ripe tomato into slices.",
        "A woman is slicing an onion in the kitchen.",
        "Someone washes vegetables before lunch.",
        "The restaurant closes at ten on Sundays.",
        "The satellite entered orbit without a problem.",
    ),
    (
        "The train to the coast leaves at half past seven.",
        "At seven thirty the train departs for the coast.",
        "The bus to the coast leaves at half past eight.",
        "Tickets for the coast line are sold on the platform.",
        "Her car needed new brakes after the trip.",
        "Add a pinch of salt to the boiling water.",
    ),
    (
        "Two children are building a sandcastle on the beach.",
        "On the beach, two kids make a castle out of sand.",
        "A child is digging a hole on the beach.",
        "The family spent their holiday by the sea.",
        "The ferry carries cars and passengers to the island.",
        "The court rejected the appeal of the company.",
    ),
    (
        "The function returns an empty list when nothing matches.",
        "If there is no match, an empty list is returned by the function.",
        "The function returns None when nothing matches.",
        "The search function accepts a pattern and a list of files.",
        "Type hints make large code bases easier to read.",
        "Our neighbour grows roses along the fence.",
    ),
    (
        "How do I reset my password?",
        "What are the steps to set a new password if I forgot mine?",
        "How do I change my user name?",
        "The account page shows your recent logins.",
        "Emails from the newsletter can be turned off.",
        "Why do leaves turn red in autumn?",
    ),
    (
        "The vaccine protects most people from severe illness.",
        "Severe illness is prevented in most people by the vaccine.",
        "The vaccine protects some people from infection.",
        "Health workers are vaccinated every winter.",
        "The hospital opened a new parking garage.",
        "The guitarist broke a string during the second song.",
    ),
    (
        "Prices rose faster than wages last year.",
        "Last year wages grew more slowly than prices.",
        "Prices rose faster than expected last month.",
        "The central bank watches inflation closely.",
        "Many small shops accept cards only.",
        "The glacier feeds two rivers.",
    ),
    (
        "The server rejects requests without a valid token.",
        "Requests that lack a valid token are refused by the server.",
        "The server logs requests without a valid token.",
        "Tokens expire after one hour of inactivity.",
        "The load balancer was moved to another data centre.",
        "My grandmother knits socks for everyone.",
    ),
    (
        "A dog is running through deep snow.",
        "Through the deep snow runs a dog.",
        "A dog is running through shallow water.",
        "Pets need more care in cold weather.",
        "The ski lift is closed because of the wind.",
        "The invoice must be paid within thirty days.",
    ),
    (
        "The museum is free for students on Wednesdays.",
        "On Wednesdays students do not pay to enter the museum.",
        "The museum is free for children on Saturdays.",
        "The exhibition shows paintings from the last century.",
        "The city plans to renovate the old theatre.",
        "Restart the router and wait for two minutes.",
    ),
    (
        "The database index makes lookups by name faster.",
        "Searching by name is sped up by the database index.",
        "The database index makes inserts a little slower.",
        "The table stores one row for each customer.",
        "Backups are copied to a second site at night.",
        "The actor thanked his parents in his speech.",
    ),
    (
        "He forgot his umbrella and got soaked.",
        "Because he had left his umbrella behind, he became very wet.",
        "He forgot his coat and got cold.",
        "Heavy rain is expected in the afternoon.",
        "The farmers hope for a mild spring.",
        "The theorem follows from the two lemmas.",
    ),
    (
        "The committee postponed the vote until Friday.",
        "The vote was put off to Friday by the committee.",
        "The committee held the vote on Thursday.",
        "Members of the committee discussed the budget.",
        "The mayor opened a new playground.",
        "Whales sleep with one half of their brain at a time.",
    ),
    (
        "Install the package before running the tests.",
        "The tests should be run only after the package has been installed.",
        "Install the package before building the documentation.",
        "The tests cover the parser and the command line.",
        "The release notes list every change since spring.",
        "She painted the bedroom walls light green.",
    ),
    (
        "The patient was given antibiotics for a lung infection.",
        "Antibiotics were prescribed to treat the patient's lung infection.",
        "The patient was given painkillers for a broken rib.",
        "Lung infections are more common in older people.",
        "Nurses work in shifts of eight hours.",
        "The bridge is lit in blue at night.",
    ),
    (
        "The team won the final after extra time.",
        "It took extra time for the team to win the final.",
        "The team lost the final after extra time.",
        "Thousands of fans watched the match in the stadium.",
        "The club is looking for a new sponsor.",
        "Knead the dough until it is smooth.",
    ),
    (
        "Solar panels produce less power on cloudy days.",
        "On days with clouds, solar panels generate less electricity.",
        "Wind turbines produce less power on calm days.",
        "The school put solar panels on its roof.",
        "Energy use is highest in the early evening.",
        "The novel is told by three different narrators.",
    ),
    (
        "The process crashed because it ran out of memory.",
        "Running out of memory made the process crash.",
        "The process stopped because the disk was full.",
        "The process writes its log to a file.",
        "The new laptop has a brighter screen.",
        "The choir rehearses in the church hall.",
    ),
    (
        "You can return the shoes within two weeks.",
        "The shoes may be sent back for up to fourteen days.",
        "You can exchange the shirt within one month.",
        "The shop sells shoes in all common sizes.",
        "Deliveries are slower before the holidays.",
        "Comets are made of ice and dust.",
    ),
    (
        "The recipe calls for two cups of flour.",
        "Two cups of flour are needed for this recipe.",
        "The recipe calls for one cup of sugar.",
        "Bread dough should rest in a warm place.",
        "The café serves breakfast until noon.",
        "The driver was fined for speeding.",
    ),
    (
        "Old cells are removed by the immune system.",
        "The immune system clears away aged cells.",
        "Infected cells are removed by the immune system.",
        "Biologists study how cells age.",
        "The laboratory bought a second microscope.",
        "The tenants complained about the noise.",
    ),
    (
        "Merge the branch once the review is approved.",
        "After the review has been approved, the branch should be merged.",
        "Delete the branch once the change is merged.",
        "Every change needs a review by a second person.",
        "The project moved to another hosting service.",
        "Penguins cannot fly but swim well.",
    ),
    (
        "The lecture explains how earthquakes are measured.",
        "How earthquakes are measured is explained in the lecture.",
        "The lecture explains how volcanoes are formed.",
        "The strongest earthquakes occur near plate boundaries.",
        "The university offers evening courses.",
        "This jacket has four pockets.",
    ),
    (
        "Nobody answered the phone at the office.",
        "At the office, no one picked up the phone.",
        "Nobody opened the door at the office.",
        "The office can be reached by phone or mail.",
        "The company hired two accountants.",
        "The river freezes over in January.",
    ),
)

PROBES: tuple[Probe, ...] = tuple(
    Probe(family[0], sentence, grade)
    for family in _FAMILIES
    for sentence, grade in zip(family[1:], _GRADES, strict=True)
)
